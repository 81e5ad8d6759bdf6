package lab

import (
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// stubborn is a computer that does not power off.
type stubborn struct {
	computer
	answers map[string]string // what the commands print
}

func (s stubborn) Poweroff(ctx context.Context) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (s stubborn) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "printf", "%s", s.answers[argv[0]])
}

func (s stubborn) Console() string { return "the last words" }

func TestWhatHoldsAShutdownIsToldAndKept(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	const jobs = `JOB UNIT                   TYPE  STATE
810 network.target         stop  waiting
804 postgresql@15-main.service stop running
790 poweroff.target        start waiting

3 jobs listed.
`
	m := &Machine{Name: "crash4", m: stubborn{answers: map[string]string{"systemctl": jobs, "journalctl": "Stopping", "ps": "1 init"}}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := m.Poweroff(ctx)
	dir := filepath.Join(os.Getenv("XDG_CACHE_HOME"), "packer-plugin-xivo/held/crash4")
	if err == nil || !strings.Contains(err.Error(), "held by: postgresql@15-main.service (stop);") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
	for kind, want := range map[string]string{"jobs": jobs, "journal": "Stopping", "processes": "1 init", "console": "the last words"} {
		if got, err := os.ReadFile(filepath.Join(dir, "crash4."+kind)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", kind, got, err)
		}
	}
}

func TestAUnitThatHoldsAShutdownIsNamed(t *testing.T) {
	needsLab(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	l, err := New(t.Context(), os.Getenv("XIVO_SERVER_ROOT"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := l.Start(t.Context(), Node{Name: "held", Address: netip.MustParseAddr("10.77.0.42")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), Hang)
	defer cancel()
	err = Wait(ctx, "a unit that does not stop to run", func(ctx context.Context) (bool, error) {
		_, err := m.Run(ctx, "systemd-run", "--unit=stubborn", "--property=TimeoutStopSec=infinity",
			"--property=ExecStop=/bin/sleep infinity", "sleep", "infinity")
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	// The deadline that passes is one of a shutdown that is held already.
	held := make(chan error, 1)
	late, pass := context.WithCancel(ctx)
	go func() { held <- m.Poweroff(late) }()
	err = Wait(ctx, "the unit alone to hold the shutdown", func(ctx context.Context) (bool, error) {
		jobs, err := m.Run(ctx, "systemctl", "list-jobs", "--no-pager", "--full")
		return runningJobs(jobs) == "stubborn.service (stop)", err
	})
	if err != nil {
		t.Fatal(err)
	}
	pass()
	if err := <-held; err == nil || !strings.Contains(err.Error(), "held by: stubborn.service (stop);") {
		t.Errorf("got %v", err)
	}
}
