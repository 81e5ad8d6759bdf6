package sealing

// The name of our first boot's operation, and what stands in an image for a token.
const (
	InstallStep      = installStep
	PlaceholderToken = placeholderToken
)

// Check refuses what Seal would, before it looks at the machine.
func (o Options) Check() error { return o.check() }
