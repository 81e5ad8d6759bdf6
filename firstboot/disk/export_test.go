package disk

// What the kernel's lists are read as.
var (
	ReadMounts = fileSystems
	ReadSwaps  = swaps
)
