package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
)

// Guarded is a command that goes on when the terminal or the caller goes away,
// and After, which runs when it ended, however it ended.
type Guarded struct {
	// Unit is what systemd calls it: NAME.service.
	Unit        string
	Argv, After []string
}

// ErrGuarded is what RunGuarded says while the same unit is still at work.
var ErrGuarded = errors.New("under way")

// RunGuarded runs the command, and After, to their end; what they print goes to
// out. The error is an *ExitError where the command ended with an exit code.
//
// Under systemd both are a unit, so that even SIGKILL of every process of ours
// leaves After to be run; when ctx ends, the waiting ends, not the unit. What is
// printed goes through the journal: whoever listens may go, and that must not
// end After. Without systemd this process is the guard, and ctx ends nothing.
func (p *Platform) RunGuarded(ctx context.Context, g Guarded, out io.Writer) error {
	if p.HasSystemd() {
		return g.runAsUnit(ctx, p.Path("/run/systemd/system", g.Unit), out)
	}
	return g.runAsChild(out)
}

// ExitError is a guarded command's own exit code.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("exit status %d", e.Code) }

// runAsUnit writes the unit into systemd's folder for those of this boot: the
// transient ones of jessie's systemd take neither a command for afterwards nor
// somebody who waits.
func (g Guarded) runAsUnit(ctx context.Context, file string, out io.Writer) error {
	switch state, err := g.property(ctx, "ActiveState"); {
	case err != nil:
		return err
	case state != "inactive" && state != "failed":
		return fmt.Errorf("%w as %s: follow it with `journalctl -fu %s`", ErrGuarded, g.Unit, g.Unit)
	}
	// From here on, however long it takes to begin reading.
	from, err := journalCursor(ctx)
	if err != nil {
		return err
	}
	attr, err := files.Kept(file, 0o644)
	if err != nil {
		return err
	}
	if err := files.WriteFile(file, []byte(g.unit()), attr); err != nil {
		return err
	}
	defer func() {
		// Not when the caller went away: the unit still runs.
		if ctx.Err() == nil {
			os.Remove(file)
			Run(ctx, "systemctl", "reset-failed", g.Unit)
			Run(ctx, "systemctl", "daemon-reload")
		}
	}()
	if _, err := Run(ctx, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	follow := exec.CommandContext(ctx, "journalctl", "--follow", "--no-tail", "--output=cat", "--unit="+g.Unit, "--after-cursor="+from)
	follow.Stdout = out
	if err := follow.Start(); err != nil {
		return err
	}
	_, startErr := Run(ctx, "systemctl", "start", g.Unit)
	// What was printed last is on its way through the journal.
	time.Sleep(time.Second)
	follow.Process.Kill()
	follow.Wait()
	if startErr == nil || ctx.Err() != nil {
		return startErr
	}
	code, err := g.property(ctx, "ExecMainStatus")
	if err != nil {
		return errors.Join(startErr, err)
	}
	if n, err := strconv.Atoi(code); err == nil && n > 0 {
		return &ExitError{n}
	}
	return startErr
}

func (g Guarded) unit() string {
	return "[Unit]\nDescription=" + strings.Join(g.Argv, " ") + "\n" +
		"[Service]\nType=oneshot\nTimeoutStartSec=0\nTimeoutStopSec=10min\n" +
		"ExecStart=" + unitCommand(g.Argv) + "\nExecStopPost=" + unitCommand(g.After) + "\n"
}

// unitCommand is a command line as systemd reads it.
func unitCommand(argv []string) string {
	words := make([]string, len(argv))
	for i, word := range argv {
		words[i] = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%", "$", "$$").Replace(word) + `"`
	}
	return strings.Join(words, " ")
}

// property reads one of the unit's. The older systemctl prints it with its name
// only.
func (g Guarded) property(ctx context.Context, name string) (string, error) {
	out, err := Run(ctx, "systemctl", "show", "--property="+name, g.Unit)
	if err != nil {
		return "", err
	}
	value, ok := strings.CutPrefix(strings.TrimSpace(out), name+"=")
	if !ok {
		return "", fmt.Errorf("platform: systemctl does not tell %s of %s", name, g.Unit)
	}
	return value, nil
}

// journalCursor is where the journal ends now.
func journalCursor(ctx context.Context) (string, error) {
	out, err := Run(ctx, "journalctl", "--quiet", "--lines=1", "--output=cat", "--show-cursor")
	if err != nil {
		return "", err
	}
	_, cursor, ok := strings.Cut(out, "-- cursor: ")
	if !ok {
		return "", errors.New("platform: journalctl tells no cursor: see whether systemd-journald runs")
	}
	return strings.TrimSpace(cursor), nil
}

// runAsChild is the guard itself: deaf to what ends a session, and in another
// session than the command, which therefore is not even asked to end.
func (g Guarded) runAsChild(out io.Writer) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGPIPE)
	start := func(argv []string) error {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			return err
		}
		cmd := exec.Command(path, argv[1:]...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		// A daemon that inherits the pipe must not keep us here.
		cmd.WaitDelay = 5 * time.Second
		return cmd.Run()
	}
	err := start(g.Argv)
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = &ExitError{exit.ExitCode()}
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	afterErr := start(g.After)
	if errors.Is(afterErr, exec.ErrWaitDelay) {
		afterErr = nil
	}
	if afterErr != nil {
		return errors.Join(err, fmt.Errorf("%s: %w", filepath.Base(g.After[0]), afterErr))
	}
	return err
}
