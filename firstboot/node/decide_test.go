package node_test

import (
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

const (
	productA  = "4c4c4544-0051-3510-8052-b4c04f4a4d31"
	productA2 = "44454c4c-5100-1035-8052-b4c04f4a4d31" // the same, byte-swapped
	productB  = "11111111-2222-3333-4444-555555555555"
)

// instance is what cloud-init and the hardware say.
func instance(id, product string) node.Instance { return node.Instance{ID: id, Product: product} }

// journalOf is the journal of an instance that ended these phases.
func journalOf(i node.Instance, phases ...string) *node.Journal {
	j := &node.Journal{Format: 1, Instance: i, Identity: node.Identity{UUID: uuid.New()}, Steps: map[string]engine.Stamp{}}
	for _, p := range phases {
		j.Steps[p] = engine.Stamp{State: engine.Done}
	}
	return j
}

func TestDecide(t *testing.T) {
	document := func(id string) *cloudinit.Config { return &cloudinit.Config{Identity: id} }
	auto := document(cloudinit.IdentityAuto)
	keep, regenerate := document(cloudinit.IdentityKeep), document(cloudinit.IdentityRegenerate)

	was := journalOf(instance("i-1", productA), node.Become)
	noProduct := journalOf(instance("i-1", ""), node.Become)
	begun := journalOf(instance("i-1", productA))
	settled := journalOf(instance("i-1", productA), node.Become, node.Settle)

	for _, c := range []struct {
		name  string
		found node.Found
		want  node.Action
	}{
		{"sealed, with a document", node.Found{Sealed: true, Document: auto, Instance: instance("i-1", productA)}, node.TakeOn},
		{"sealed, without a document: must not run as the original", node.Found{Sealed: true}, node.TakeOn},
		{"never sealed, no document", node.Found{Instance: instance("i-1", productA)}, node.LeaveAlone},
		{"never sealed, identity auto", node.Found{Document: auto}, node.LeaveAlone},
		{"never sealed, identity keep", node.Found{Document: keep}, node.Adopt},
		{"never sealed, identity regenerate", node.Found{Document: regenerate}, node.TakeOn},

		{"second boot", node.Found{Journal: was, Sealed: true, Instance: instance("i-1", productA), Document: auto}, node.Unchanged},
		{"second boot with the document broken", node.Found{Journal: was, Sealed: true, Instance: instance("i-1", productA)}, node.Unchanged},
		{"second boot, the become was cut off", node.Found{Journal: begun, Instance: instance("i-1", productA), Document: auto}, node.Resume},
		{"the seed is detached: no instance id", node.Found{Journal: was, Instance: instance("", productA)}, node.Unchanged},
		{"the firmware swaps its bytes", node.Found{Journal: was, Instance: instance("i-1", productA2)}, node.Unchanged},
		{"the product UUID is not told any more", node.Found{Journal: was, Instance: instance("i-1", "")}, node.Unchanged},

		{"the first document of a node that became without one", node.Found{Journal: settled, Instance: instance("i-1", productA), Pending: true}, node.Adopt},
		{"another member has its address, and it never was a member", node.Found{Journal: settled, Instance: instance("i-1", productA), Taken: true}, node.Adopt},
		{"the same, while it has not settled", node.Found{Journal: was, Instance: instance("i-1", productA), Taken: true}, node.Unchanged},
		{"the same, and one sign of a clone", node.Found{Journal: settled, Instance: instance("i-2", productA), Taken: true}, node.InDoubt},
		{"that document, while the node has not settled", node.Found{Journal: was, Instance: instance("i-1", productA), Pending: true}, node.Unchanged},
		{"that document, while the become was cut off", node.Found{Journal: begun, Instance: instance("i-1", productA), Pending: true}, node.Resume},
		{"that document, and one sign of a clone", node.Found{Journal: settled, Instance: instance("i-2", productA), Pending: true}, node.InDoubt},

		{"clone of a node: both signs", node.Found{Journal: was, Instance: instance("i-2", productB)}, node.TakeOn},
		{"clone where no product UUID is known", node.Found{Journal: noProduct, Instance: instance("i-2", "")}, node.TakeOn},
		{"clone of a node that was cut off", node.Found{Journal: begun, Instance: instance("i-2", productB)}, node.TakeOn},
		{"a copied keep is void", node.Found{Journal: was, Instance: instance("i-2", productB), Document: keep}, node.TakeOn},

		{"only the instance id changed", node.Found{Journal: was, Instance: instance("i-2", productA)}, node.InDoubt},
		{"only the instance id changed, bytes swapped", node.Found{Journal: was, Instance: instance("i-2", productA2)}, node.InDoubt},
		{"only the hardware changed", node.Found{Journal: was, Instance: instance("i-1", productB)}, node.InDoubt},
		{"only the hardware changed, and the seed is detached", node.Found{Journal: was, Instance: instance("", productB)}, node.InDoubt},
		{"a doubt that a person confirmed", node.Found{Journal: was, Instance: instance("i-1", productB), Confirmed: true}, node.TakeOn},
		{"confirming what is no doubt changes nothing", node.Found{Journal: was, Instance: instance("i-1", productA), Confirmed: true}, node.Unchanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, why := node.Decide(c.found)
			if got != c.want {
				t.Errorf("%s (%s), want %s", got, why, c.want)
			}
			if why == "" {
				t.Error("no reason is given")
			}
		})
	}
}

// A VM that was moved is what it was, under the names that it has now; what is not
// told now is no news.
func TestAMachineThatWasMovedStaysWhatItIs(t *testing.T) {
	for _, c := range []struct{ now, want node.Instance }{
		{instance("i-2", productA), instance("i-2", productA)},
		{instance("", productB), instance("i-1", productB)},
	} {
		n := machine(t)
		n.Instance = instance("i-1", productA)
		n.Journal = n.NewJournal(node.Identity{UUID: uuid.New()})
		nodetest.Done(t, n, node.Become)
		n.Instance = c.now
		if action, why := n.Decide(false); action != node.InDoubt {
			t.Fatalf("before: %s (%s)", action, why)
		}
		if err := errors.Join(n.MakeStateDir(), n.Moved()); err != nil {
			t.Fatal(err)
		}
		again := reopen(t, n)
		again.Instance = c.now
		if action, why := again.Decide(false); action != node.Unchanged || again.Journal.Instance != c.want || again.Identity() != n.Identity() {
			t.Errorf("after: %s (%s), as %+v", action, why, again.Journal)
		}
	}
}
