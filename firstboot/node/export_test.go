package node

// ParseJournal lets a fuzz test in: whatever is in the file must be a whole
// journal or an error.
func ParseJournal(raw []byte, file string) (*Journal, error) { return parseJournal(raw, file) }
