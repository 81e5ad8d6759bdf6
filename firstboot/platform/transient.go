package platform

import (
	"context"
	"io"
	"os/exec"
	"strings"
)

// Transient is a command as a transient systemd unit: it goes on when the
// terminal or the caller goes away, and After runs when it ends, however it
// ends.
type Transient struct {
	Unit  string
	Argv  []string
	After []string
}

// Run starts the unit and waits for its end; what it prints goes to out. The
// error is an *exec.ExitError with the command's own exit code. When ctx ends,
// the waiting ends, not the unit.
func (t Transient) Run(ctx context.Context, out io.Writer) error {
	args := []string{
		"--unit=" + t.Unit, "--collect", "--quiet", "--wait", "--pipe",
		"--property=ExecStopPost=" + strings.Join(t.After, " "),
		"--property=TimeoutStopSec=10min",
		"--",
	}
	cmd := exec.CommandContext(ctx, "systemd-run", append(args, t.Argv...)...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}
