package machine

// Cgroups are the control groups of the sandbox.
func (s *Sandbox) Cgroups() []string { return s.cgroups.dirs }
