package node_test

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

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// TestMain is also the other copy of the program that the tests start.
func TestMain(m *testing.M) {
	if root := os.Getenv("LOCK_ROOT"); root != "" {
		n := node.New(&platform.Platform{Root: root}, slog.New(slog.DiscardHandler))
		fmt.Println(n.Lock())
		bufio.NewReader(os.Stdin).ReadString('\n') // works until it is killed
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestTheSecondCopySaysWhoHoldsTheLock(t *testing.T) {
	second := nodetest.Bare(t)
	first := exec.Command(os.Args[0], "run", "--confirm=false")
	first.Env = append(os.Environ(), "LOCK_ROOT="+second.Platform.Root)
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

	holder := fmt.Sprintf("(pid %d: %s run --confirm=false)", first.Process.Pid, os.Args[0])
	if err := second.Lock(); !errors.Is(err, node.ErrBusy) || !strings.Contains(err.Error(), holder) {
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
	late := nodetest.Bare(t)
	decided := late.NewJournal(node.Identity{UUID: uuid.New()})
	if err := errors.Join(late.MakeStateDir(), decided.Save()); err != nil {
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
