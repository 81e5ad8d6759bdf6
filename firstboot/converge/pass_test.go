package converge

import (
	"context"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

// What the mesh refused is asked again once by every process: not by one that could
// not see yet whether it was refused.
func TestTheMeshIsAskedAgainAlsoWhereConsulCameUpLate(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	over, cancel := context.WithCancel(t.Context())
	cancel() // no step is of interest
	m := new(Memory)
	p := databasePass(t, n, m)
	if p.View.WAN.Err == nil {
		t.Fatal("there is a Consul")
	}
	p.run(over)
	if m.askedAgain {
		t.Error("Consul does not answer, and a refusal of before is taken for a new one")
	}
	seen := func(changes ...func(*View)) *Pass {
		v := sees(changes...)
		return &Pass{Node: n, View: v, Decision: decide(v, *m), memory: m}
	}
	seen(refusedBy("x", "r", "16.03")).run(over)
	if m.askedAgain {
		t.Error("the mesh was not asked again, and is taken to be")
	}
	seen().run(over)
	if !m.askedAgain {
		t.Error("nobody had refused this node: what is said from now on is new")
	}
}
