package converge

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// A node that reaches nobody is in no WAN with others, which is not to be told as fine.
// One that cannot know that is looked at.
func TestTheWANConcernsWhoReachesOthersOrKeepsOut(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	withoutConsulAndBroker(n)
	wan, _ := Phase.Step("wan")
	for _, c := range []struct {
		name  string
		view  *View
		level Level
		says  string
	}{
		{"it knows no other", sees(), Skipped, "no other member is reached"},
		{"it reaches none", sees(silent(second)), Skipped, "no other member is reached"},
		{"it reaches one", sees(reached(second)), Fail, errDown.Error()},
		{"this node left", sees(leftItself), Fail, errDown.Error()},
		{"it was refused", sees(refuses("x", overlay.OtherVersion, "r")), Fail, errDown.Error()},
		{"nothing tells whether it left", sees(overlayDown), Fail, overlay.ErrNotRunning.Error()},
		{"Consul does not tell", sees(func(v *View) { v.WAN.Err = errors.New("no leader") }), Fail, "no leader"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Pass{Node: n, View: c.view, Decision: decide(c.view), memory: new(Memory)}
			if level, says := lookedAt(wan, p, Warn, "")(t.Context(), n); level != c.level || !strings.Contains(says, c.says) {
				t.Errorf("it is told as %s, %q; want %s, %q", level, says, c.level, c.says)
			}
		})
	}
}

// As long as the service does not tell who is there, what the disk has stays.
func TestWhoIsOnTheDiskStaysWhileNothingIsTold(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	p := databasePass(t, n, new(Memory), peer("16.03"))
	if !errors.Is(p.View.Overlay.Err, overlay.ErrNotRunning) {
		t.Fatalf("the service says %v", p.View.Overlay.Err)
	}
	before := nodetest.Files(t, n.Platform.Root)
	if _, err := p.runner().Run(t.Context(), nodetest.Only(t, Phase, "members")); !errors.Is(err, overlay.ErrNotRunning) {
		t.Errorf("the step says %v", err)
	}
	if len(p.Decision.Members) != 1 || nodetest.Files(t, n.Platform.Root)[n.Platform.Path("/var/lib/xivo-firstboot/members.json")] != before[n.Platform.Path("/var/lib/xivo-firstboot/members.json")] {
		t.Errorf("the members are %v, and on the disk others", p.Decision.Members)
	}
}

// What a node is, and what its status says of why.
func TestStates(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	names := func(v *View) { v.Peers.Addresses = []string{"192.0.2.9"} }
	one := func(m string) func(*Pass) {
		return func(p *Pass) { p.answers[m] = 1 }
	}
	both := func(p *Pass) { one(second.UUID.String())(p); one(third.UUID.String())(p) }
	for _, c := range []struct {
		name    string
		view    *View
		answers func(*Pass)
		want    State
		why     string
	}{
		{"no peer is known", sees(), nil, Alone, ""},
		{"its peers have not answered", sees(names), nil, Joining, "no peer answered yet"},
		{"its peers do not answer, and the service says why", sees(names, func(v *View) { v.Overlay.Status.Silent = map[string]string{"a": "hello to a: no route"} }), nil, Joining, "hello to a: no route"},
		{"it met one, and no message came back yet", sees(names, reached(second)), nil, Joining, "no peer answered yet"},
		{"all answer", sees(names, reached(second, third)), both, Joined, ""},
		{"one does not", sees(names, reached(second, third)), one(second.UUID.String()), Degraded, "no answer from xivo3 (10.0.0.3)"},
		{"all answer, while the service does not run", sees(names, knows(second, third), overlayDown), both, Joined, ""},
		{"it left", sees(knows(second), silent(second), leftItself), nil, Alone, "this node left the mesh, or was taken out of it, at "},
		{"it was forgotten while it was away", sees(knows(second), silent(second), refuses("x", overlay.Departed, "r")), nil, Alone, "this node left the mesh, or was taken out of it; `xivo-firstboot leave --undo` takes it back"},
		{"it was refused", sees(names, refuses("x", overlay.OtherVersion, "it runs another version")), nil, Waiting, "x does not let this node in: it runs another version; it goes on alone"},
		{"it was refused, and its members are away", sees(names, knows(second), silent(second), refuses("x", overlay.OtherVersion, "r")), nil, Joining, "no peer answered yet"},
		{"a version that cannot be joined", sees(names, notJoinable), nil, Waiting, "cannot be joined to others"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &Pass{Node: n, View: c.view, Decision: decide(c.view), memory: new(Memory), answers: map[string]time.Duration{}}
			if c.answers != nil {
				c.answers(p)
			}
			if s := p.conclude(Status{}, nil); s.State != c.want || !strings.Contains(s.Why, c.why) || c.why == "" && s.Why != "" {
				t.Errorf("%s, %q; want %s, %q", s.State, s.Why, c.want, c.why)
			}
		})
	}
}
