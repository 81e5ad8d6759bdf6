package converge

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

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

// A node whose document names nobody is in no WAN with others, which is not to be
// told as fine. One that cannot know that is looked at.
func TestTheWANConcernsWhoHasPeersOrKeepsOut(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	withoutConsulAndBroker(n)
	wan, _ := Phase.Step("wan")
	for _, c := range []struct {
		name  string
		view  *View
		level Level
		says  string
	}{
		{"the document names no other node", sees(), Skipped, "the document names no other node"},
		{"it does", sees(peers("10.0.0.2")), Fail, errDown.Error()},
		{"a name in it cannot be resolved", sees(func(v *View) { v.Peers.Err = errors.New("no such host") }), Fail, errDown.Error()},
		{"this node left", sees(departed(self, time.Minute)), Fail, errDown.Error()},
		{"it was refused", sees(refusedBy("x", "r", "16.03")), Fail, errDown.Error()},
		{"nothing tells whether it left", sees(consulDown), Fail, "no leader"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Pass{Node: n, View: c.view, Decision: decide(c.view, Memory{}), memory: new(Memory)}
			if level, says := lookedAt(wan, p, Warn, "")(t.Context(), n); level != c.level || !strings.Contains(says, c.says) {
				t.Errorf("it is told as %s, %q; want %s, %q", level, says, c.level, c.says)
			}
		})
	}
}
