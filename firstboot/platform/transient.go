package platform

import (
	"context"
	"io"
	"os/exec"
	"strings"
	"time"
)

// Transient is a command as a transient systemd unit: it goes on when the
// terminal or the caller goes away, and After runs when it ends, however it
// ends.
type Transient struct {
	Unit  string
	Argv  []string
	After []string
}

// Run starts the unit and waits for its end; what it prints goes to the journal,
// and from there to out. Not straight to out: whoever listens there may go, and
// that must not end After. The error is an *exec.ExitError with the command's
// own exit code. When ctx ends, the waiting ends, not the unit.
func (t Transient) Run(ctx context.Context, out io.Writer) error {
	follow := exec.CommandContext(ctx, "journalctl", "--follow", "--lines=0", "--output=cat", "--unit="+t.Unit)
	follow.Stdout = out
	if err := follow.Start(); err != nil {
		return err
	}
	args := []string{
		"--unit=" + t.Unit, "--collect", "--quiet", "--wait",
		"--property=ExecStopPost=" + strings.Join(t.After, " "),
		"--property=TimeoutStopSec=10min",
		"--",
	}
	_, err := Run(ctx, "systemd-run", append(args, t.Argv...)...)
	// What was printed last is on its way through the journal.
	time.Sleep(time.Second)
	follow.Process.Kill()
	follow.Wait()
	return err
}
