package platform

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the guard that a test sends signals to.
func TestMain(m *testing.M) {
	if dir := os.Getenv("GUARD_DIR"); dir != "" {
		p := &Platform{Root: dir, Init: sysvinit{}}
		p.RunGuarded(context.Background(), guardedIn(dir, os.Getenv("GUARD_COMMAND")), os.Stdout)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// guardedIn is a command after which a file is written.
func guardedIn(dir, command string) Guarded {
	return Guarded{Argv: []string{"sh", "-c", command}, After: []string{"touch", filepath.Join(dir, "after")}}
}

func TestWithoutSystemdXiVOIsStartedHoweverTheCommandEnds(t *testing.T) {
	for _, tc := range []struct {
		name, command string
		code          int // 0: no exit code of its own
		fails         bool
	}{
		{"well", "echo done", 0, false},
		{"badly", "exit 7", 7, true},
		{"by SIGKILL", "kill -KILL $$", 0, true},
		{"and leaves a daemon behind that keeps its output open", "sleep 7 &", 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			var out bytes.Buffer
			err := (&Platform{Root: dir, Init: sysvinit{}}).RunGuarded(t.Context(), guardedIn(dir, tc.command), &out)
			var exit *ExitError
			if (err != nil) != tc.fails || errors.As(err, &exit) != (tc.code != 0) || exit != nil && exit.Code != tc.code {
				t.Errorf("got %v", err)
			}
			if _, err := os.Stat(filepath.Join(dir, "after")); err != nil {
				t.Errorf("XiVO was not started: %v", err)
			}
		})
	}
}

func TestWithoutSystemdALostTerminalEndsNothing(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			guard := exec.Command(os.Args[0])
			guard.Env = append(os.Environ(), "GUARD_DIR="+dir, "GUARD_COMMAND=echo begun; read line <"+dir+"/go; touch "+dir+"/worked")
			if err := syscall.Mkfifo(filepath.Join(dir, "go"), 0o600); err != nil {
				t.Fatal(err)
			}
			stdout, err := guard.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := guard.Start(); err != nil {
				t.Fatal(err)
			}
			begun := make([]byte, 6)
			if _, err := stdout.Read(begun); err != nil || !strings.HasPrefix(string(begun), "begun") {
				t.Fatalf("%q, %v", begun, err)
			}
			stdout.Close() // the terminal is gone, and says so
			if err := guard.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "go"), []byte("on\n"), 0); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- guard.Wait() }()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("the guard was ended: %v", err)
				}
			case <-time.After(time.Minute):
				guard.Process.Kill()
				t.Fatal("the guard did not end")
			}
			for _, name := range []string{"worked", "after"} {
				if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestAUnitRunsWhatWasAskedFor(t *testing.T) {
	g := Guarded{Argv: []string{"/opt/a b/program", "100%", `"$HOME"\`}, After: []string{"/usr/bin/xivo-service", "start", "all"}}
	for _, want := range []string{
		`ExecStart="/opt/a b/program" "100%%" "\"$$HOME\"\\"` + "\n",
		`ExecStopPost="/usr/bin/xivo-service" "start" "all"` + "\n",
	} {
		if !strings.Contains(g.unit(), want) {
			t.Errorf("%q is not in\n%s", want, g.unit())
		}
	}
}
