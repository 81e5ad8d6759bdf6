package overlay_test

import (
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

func TestThreeNodesJoinThroughOneAndReachEachOther(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	c := l.newNode(t, "c", "192.0.2.3", "192.0.2.1", "192.0.2.3") // itself among them: one document serves all
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	joined(t, a, b, c)
	says(t, b.talk(t, c), "from b to c, who were never told of each other")
	says(t, c.talk(t, a), "from c to a")

	if st := a.status(t); len(st.Alarms) != 0 || len(st.Refused) != 0 {
		t.Errorf("a has alarms %q, and is refused by %v", st.Alarms, st.Refused)
	}
	out := a.node.ask(t, "uapi")
	if strings.Count(out, "public_key=") != 2 || !strings.Contains(out, "allowed_ip="+b.conf.Address.Address.String()+"/32") {
		t.Errorf("`wg show` would be told %s", out)
	}
	if out := a.run(t, "ip", "route", "get", b.conf.Address.Address.String()); !strings.Contains(out, "dev "+overlay.Interface) || !strings.Contains(out, "src "+a.conf.Address.Address.String()) {
		t.Errorf("the way to b: %s", out)
	}
	if out := a.run(t, "ip", "addr", "show", "dev", overlay.Interface); !strings.Contains(out, "mtu 1280") || strings.Contains(out, "inet") {
		t.Errorf("the interface: %s", out)
	}

	// All of them start again, without a peer in the document: what is kept is enough.
	for _, m := range []*machine{a, b, c} {
		m.node.kill()
		m.conf.Peers = nil
	}
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	joined(t, a, b, c)
}

func TestAConnectionSurvivesARestartOfTheService(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	a.boot(t)
	b.boot(t)
	joined(t, a, b)
	talk := a.talk(t, b)
	says(t, talk, "before")
	b.node.kill()
	// Nothing of b's leads to the range by another way meanwhile.
	if out, err := b.command("ip", "route", "get", a.conf.Address.Address.String()).CombinedOutput(); err == nil {
		t.Errorf("without its service, b reaches a by %s", out)
	}
	b.boot(t)
	says(t, talk, "after")
}

func TestAPeerThatBootedIsForgottenAndMetAnew(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	a.boot(t)
	b.boot(t)
	joined(t, a, b)
	talk := a.talk(t, b)
	const much = 200_000
	says(t, talk, strings.Repeat("x", much))
	received := func() uint64 {
		for _, line := range strings.Split(strings.ReplaceAll(a.node.ask(t, "uapi"), `\n`, "\n"), "\n") {
			if n, ok := strings.CutPrefix(line, "rx_bytes="); ok {
				var bytes uint64
				for _, r := range n {
					bytes = bytes*10 + uint64(r-'0')
				}
				return bytes
			}
		}
		return 0
	}
	until(t, "a has received what b sent", func() bool { return received() > much })
	b.node.kill()
	b.conf.Boot = "boot 2 of b"
	b.boot(t)
	// Only a new peer begins to count anew.
	until(t, "a has a new memory of b", func() bool { n := received(); return n > 0 && n < much })
	says(t, talk, "after")
}

func TestAConnectionSurvivesNewLANAddresses(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	c := l.newNode(t, "c", "192.0.2.3", "192.0.2.1")
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	joined(t, a, b, c)
	there, back := a.talk(t, b), b.talk(t, a)
	says(t, there, "before")
	says(t, back, "before")
	move := func(m *machine, from, to string) {
		m.run(t, "ip", "addr", "del", from+"/24", "dev", "eth0")
		m.run(t, "ip", "addr", "add", to+"/24", "dev", "eth0")
	}
	move(b, "192.0.2.2", "192.0.2.22")
	says(t, there, "b moved, and a speaks first")
	move(b, "192.0.2.22", "192.0.2.23")
	says(t, back, "b moved, and speaks first")

	// Both at once: c tells each of the other.
	move(a, "192.0.2.1", "192.0.2.11")
	move(b, "192.0.2.23", "192.0.2.24")
	says(t, there, "both moved, from a")
	says(t, back, "both moved, from b")
}

func TestACopyIsRefusedWithBothNames(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	copied := l.newNode(t, "copy-of-b", "192.0.2.3", "192.0.2.1")
	copied.conf.UUID, copied.conf.Address = b.conf.UUID, b.conf.Address
	a.boot(t)
	b.boot(t)
	joined(t, a, b)
	before, _ := a.peer(t, b)

	copied.boot(t)
	until(t, "the copy is told why", func() bool { return len(copied.status(t).Refused) > 0 })
	for _, r := range copied.status(t).Refused {
		if r.Why != overlay.UUIDTaken || !strings.Contains(r.Reason, "copy-of-b (") || !strings.Contains(r.Reason, "of b (") {
			t.Errorf("the copy is told: %s: %s", r.Why, r.Reason)
		}
	}
	if peers := copied.status(t).Peers; len(peers) != 0 {
		t.Errorf("the copy has peers: %v", peers)
	}
	if after, ok := a.peer(t, b); !ok || after.Key != before.Key || len(a.status(t).Peers) != 1 {
		t.Errorf("a knows b as %v, before as %v", after, before)
	}
	says(t, a.talk(t, b), "b is the one it was")
}

func TestWhoIsBuriedIsOutEverywhereAndComesBackWithANewRegistration(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	b := l.newNode(t, "b", "192.0.2.2", "192.0.2.1")
	c := l.newNode(t, "c", "192.0.2.3", "192.0.2.1")
	for _, m := range []*machine{a, b, c} {
		m.boot(t)
	}
	joined(t, a, b, c)
	b.node.kill() // away, and told later

	if got := a.node.ask(t, "bury "+c.conf.UUID.String()); got != `"\u003cnil\u003e"` {
		t.Fatal(got)
	}
	gone := func(from *machine) func() bool {
		return func() bool { _, ok := from.peer(t, c); return !ok }
	}
	until(t, "a is without c", gone(a))
	b.boot(t)
	until(t, "b is without c", gone(b))
	until(t, "c knows", func() bool {
		st := c.status(t)
		for _, r := range st.Refused {
			if r.Why == overlay.Departed && r.Registered == 1 {
				return true
			}
		}
		return st.Departed
	})
	if strings.Contains(a.node.ask(t, "uapi"), c.conf.Address.Address.String()) {
		t.Error("a's device still has c")
	}

	c.node.kill()
	c.conf.Registered = 2
	c.boot(t)
	joined(t, a, b, c)
}

func TestANodeWithAnotherSecretLearnsNothing(t *testing.T) {
	l := newLAN(t)
	a := l.newNode(t, "a", "192.0.2.1")
	x := l.newNode(t, "x", "192.0.2.9", "192.0.2.1")
	x.conf.Secret = "another secret that is just as long"
	a.boot(t)
	x.boot(t)
	until(t, "a was asked twice", func() bool { return a.status(t).Strangers >= 2 })
	if st := x.status(t); len(st.Peers) != 0 || len(st.Refused) != 0 {
		t.Errorf("it learnt %+v", st)
	}
	if st := a.status(t); len(st.Peers) != 0 {
		t.Errorf("a has peers: %v", st.Peers)
	}
	x.node.kill()
	x.conf.Secret = theSecret
	x.boot(t)
	joined(t, a, x)
}
