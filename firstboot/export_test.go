package firstboot

// What Boot, Run and Plan are made of, for tests with servers of their own.
var (
	Check       = check
	KeptForLife = keptForLife
	Begin       = begin
	Prepare     = prepare
	ExportLive  = exportLive
	BootBecome  = bootBecome
	BootSettle  = bootSettle
)
