package node_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

// A node whose address another member has draws the next one, and the note of it goes
// when it has it.
func TestAnAddressThatIsTakenIsDrawnAgain(t *testing.T) {
	n := nodetest.Bare(t)
	n.Document.Config = cloudinit.Alone()
	n.Journal = n.NewJournal(node.Identity{UUID: uuid.New(), Hostname: "newcomer"})
	first := netip.MustParseAddr(n.Address())
	if err := errors.Join(n.MakeStateDir(), engine.Ensure(t.Context(), n.OverlayKey()), n.WriteState(node.TakenFile, []netip.Addr{first})); err != nil {
		t.Fatal(err)
	}
	if err := n.TakeAddress(t.Context()); err != nil {
		t.Fatal(err)
	}
	kept, err := n.KeptAddress()
	if err != nil || kept.Address == first || kept.Try != 1 {
		t.Errorf("it keeps %+v, and %s is taken (%v)", kept, first, err)
	}
	if _, err := os.Stat(n.Platform.Path(node.TakenFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the note is still there: %v", err)
	}
}
