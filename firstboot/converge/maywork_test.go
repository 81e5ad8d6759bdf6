package converge

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// hasLock says whether this process has the node's lock: it would keep its file
// open.
func hasLock(t *testing.T, n *node.Node) bool {
	t.Helper()
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(open) == 0 {
		t.Fatal(open, err)
	}
	for _, fd := range open {
		if file, err := os.Readlink(fd); err == nil && file == n.Platform.Path(node.LockFile) {
			return true
		}
	}
	return false
}

// A person who removes all that says what this machine is wants the next boot to
// decide it anew: the watch that still runs must not bring half of it back.
func TestTheWatchEndsItsWorkWhenTheJournalIsGone(t *testing.T) {
	n := nodetest.Bare(t)
	defer n.Close()
	if err := n.MakeStateDir(); err != nil {
		t.Fatal(err)
	}
	if err := n.NewJournal(node.Identity{UUID: uuid.New()}).Save(); err != nil {
		t.Fatal(err)
	}
	if !mayWork(n) || !hasLock(t, n) {
		t.Fatal("it makes no pass on a node")
	}
	n.Unlock()
	if err := os.Remove(n.Platform.Path(platform.StateDir, "journal.json")); err != nil {
		t.Fatal(err)
	}
	if mayWork(n) || hasLock(t, n) {
		t.Error("it goes on, or keeps the lock from the others")
	}
}
