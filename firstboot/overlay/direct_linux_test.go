package overlay_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// newDirectNode is a machine on the LAN, which is the network that an operator brought.
func (l *lan) newDirectNode(t *testing.T, host, address string, peers ...string) *machine {
	t.Helper()
	m := l.newNode(t, host, address, peers...)
	m.conf.Mode = overlay.ModeDirect
	m.conf.Address = overlay.Address{Address: netip.MustParseAddr(address), UUID: m.conf.UUID}
	return m
}

// met waits until each of them reaches all others.
func met(t *testing.T, all ...*machine) {
	t.Helper()
	for _, m := range all {
		for _, o := range all {
			if m != o {
				until(t, m.conf.Host+" reaches "+o.conf.Host, func() bool {
					p, ok := m.peer(t, o)
					return ok && p.Reached && p.Gossip
				})
			}
		}
	}
}

func TestNodesMeetInANetworkThatAnOperatorBrought(t *testing.T) {
	l := newLAN(t)
	a := l.newDirectNode(t, "a", "192.0.2.1")
	b := l.newDirectNode(t, "b", "192.0.2.2", "192.0.2.1")
	c := l.newDirectNode(t, "c", "192.0.2.3", "192.0.2.1", "192.0.2.3") // itself among them: one document serves all
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	met(t, a, b, c)
	p, _ := b.peer(t, c)
	if p.Address.String() != "192.0.2.3" || p.Handshake >= 0 {
		t.Errorf("b, who was never told of c, has it as %+v", p)
	}
	// Nothing of the machine's network is changed.
	if out := a.run(t, "ip", "link"); strings.Contains(out, overlay.Interface) {
		t.Errorf("there is an interface: %s", out)
	}
	if out := a.run(t, "ip", "addr", "show", "dev", "lo") + a.run(t, "ip", "route"); strings.Contains(out, "192.0.2.1/32") || strings.Contains(out, "unreachable") {
		t.Errorf("there are an address or a route: %s", out)
	}
	if out := a.run(t, "ss", "-Hlun"); strings.Contains(out, ":9484") {
		t.Errorf("something listens on UDP: %s", out)
	}

	// What is kept is enough to meet again.
	for _, m := range []*machine{a, b, c} {
		m.node.kill()
		m.conf.Peers = nil
	}
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	met(t, a, b, c)

	if got := a.node.ask(t, "bury "+c.conf.UUID.String()); got != `"\u003cnil\u003e"` {
		t.Fatal(got)
	}
	for _, m := range []*machine{a, b} {
		until(t, m.conf.Host+" is without c", func() bool { _, ok := m.peer(t, c); return !ok })
		if over := m.status(t).Departures; len(over) != 1 || over[0] != c.conf.UUID {
			t.Errorf("for %s, %v left", m.conf.Host, over)
		}
	}
	until(t, "c knows", func() bool { return c.status(t).Departed })
}

func TestAMemberThatIsCutOffIsNotReachedAndMetAgain(t *testing.T) {
	l := newLAN(t)
	a := l.newDirectNode(t, "a", "192.0.2.1")
	b := l.newDirectNode(t, "b", "192.0.2.2", "192.0.2.1")
	a.conf.Silence, b.conf.Silence = 5*time.Second, 5*time.Second
	a.boot(t)
	b.boot(t)
	met(t, a, b)
	b.run(t, "ip", "link", "set", "eth0", "down")
	until(t, "a does not reach b", func() bool { p, ok := a.peer(t, b); return ok && !p.Reached })
	b.run(t, "ip", "link", "set", "eth0", "up")
	met(t, a, b)
}

func TestModesDoNotMixInOneMesh(t *testing.T) {
	l := newLAN(t)
	a := l.newDirectNode(t, "a", "192.0.2.1")
	x := l.newNode(t, "x", "192.0.2.9", "192.0.2.1")
	a.boot(t)
	x.boot(t)
	until(t, "x is told why", func() bool { return len(x.status(t).Refused) > 0 })
	for _, r := range x.status(t).Refused {
		if r.Why != overlay.OtherNetwork || !strings.Contains(r.Reason, "all nodes of a mesh have one") {
			t.Errorf("x is told: %s: %s", r.Why, r.Reason)
		}
	}
	if peers := a.status(t).Peers; len(peers) > 0 {
		t.Errorf("a has peers: %v", peers)
	}
}
