package firstboot

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// TestMain is also the other copy of the program that the tests start.
func TestMain(m *testing.M) {
	if root := os.Getenv("LOCK_ROOT"); root != "" {
		n := &Node{Platform: &platform.Platform{Root: root}}
		fmt.Println(n.Lock())
		bufio.NewReader(os.Stdin).ReadString('\n') // works until it is killed
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTheSecondCopySaysWhoHoldsTheLock(t *testing.T) {
	root := t.TempDir()
	first := exec.Command(os.Args[0], "run", "--confirm=false")
	first.Env = append(os.Environ(), "LOCK_ROOT="+root)
	stdin, err := first.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := first.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	if said, err := bufio.NewReader(stdout).ReadString('\n'); said != "<nil>\n" {
		t.Fatalf("the first copy has no lock: %q, %v", said, err)
	}

	second := &Node{Platform: &platform.Platform{Root: root}}
	holder := fmt.Sprintf("(pid %d: %s run --confirm=false)", first.Process.Pid, os.Args[0])
	if err := second.Lock(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), holder) {
		t.Errorf("the second copy says %q, want it to name %s", err, holder)
	}

	// However the first ends, its lock ends with it.
	first.Process.Kill()
	first.Wait()
	if err := second.Lock(); err != nil {
		t.Errorf("after a SIGKILL of the first: %v", err)
	}
	second.Close()
}

// Two that start together both find no journal; the slower of them must not
// decide on another identity.
func TestWhoGetsTheLockLateSeesWhatWasDecided(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	if err := os.MkdirAll(p.Path(platform.StateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	late := &Node{Platform: p}
	decided := newJournal(p.Path(journalFile), Instance{}, Identity{UUID: uuid.New()})
	if err := decided.save(); err != nil {
		t.Fatal(err)
	}
	if err := late.Lock(); err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if late.Identity() != decided.Identity {
		t.Errorf("it goes on as %v, decided was %v", late.Identity(), decided.Identity)
	}
}

// A person who removes all that says what this machine is wants the next boot to
// decide it anew: the watch that still runs must not bring half of it back.
func TestTheWatchEndsItsWorkWhenTheJournalIsGone(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	if err := os.MkdirAll(p.Path(platform.StateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	j := newJournal(p.Path(journalFile), Instance{}, Identity{UUID: uuid.New()})
	if err := j.save(); err != nil {
		t.Fatal(err)
	}
	n := &Node{Platform: p, Log: slog.New(slog.DiscardHandler)}
	defer n.Close()
	if !n.mayWork() {
		t.Fatal("it makes no pass on a node")
	}
	n.Unlock()
	if err := os.Remove(p.Path(journalFile)); err != nil {
		t.Fatal(err)
	}
	if n.mayWork() || n.lock != nil {
		t.Error("it goes on, or keeps the lock from the others")
	}
}
