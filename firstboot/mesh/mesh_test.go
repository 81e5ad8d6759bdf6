package mesh

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func node(i int) Member {
	return Member{
		UUID:    uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)),
		Host:    fmt.Sprintf("xivo%d", i),
		Name:    fmt.Sprintf("xivo%d-0000000%d", i, i),
		Address: fmt.Sprintf("10.0.0.%d", i),
		Version: "16.03",
		KeyID:   "abcdef",

		Registered: time.Date(2026, 1, 1, 0, 0, i, 5, time.UTC),
	}
}

func TestMemberIsReadBackFromItsTags(t *testing.T) {
	want := node(1)
	got, err := ParseMember(want.Name, want.Address, want.Tags())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	at := func(address string) Member {
		return Member{Name: "x", Address: address, UUID: want.UUID, Registered: want.Registered}
	}
	for name, bad := range map[string]Member{
		"address is loopback":       at("127.0.0.1"),
		"address is of no network":  at("0.1.2.3"),
		"address is none":           at("0.0.0.0"),
		"address is link-local":     at("169.254.169.254"),
		"address is multicast":      at("224.0.0.1"),
		"address is reserved":       at("240.0.0.1"),
		"address is everybody":      at("255.255.255.255"),
		"address is IPv4 in IPv6":   at("::ffff:10.0.0.1"),
		"registered in 1900":        {Name: "x", Address: "10.0.0.1", UUID: want.UUID, Registered: time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)},
		"registered in year 9999":   {Name: "x", Address: "10.0.0.1", UUID: want.UUID, Registered: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)},
		"a version of a whole book": {Name: "x", Address: "10.0.0.1", UUID: want.UUID, Registered: want.Registered, Version: strings.Repeat("x", 2000)},
		"no uuid":                   {Name: "x", Address: "10.0.0.1"},
		"address is a name":         {Name: "x", Address: "xivo", UUID: want.UUID},
		"address is IPv6":           {Name: "x", Address: "::1", UUID: want.UUID},
		"address is missing":        {Name: "x", UUID: want.UUID},
	} {
		if _, err := ParseMember(bad.Name, bad.Address, bad.Tags()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for name, tags := range map[string][]string{
		"a uuid that is told twice": append(want.Tags(), "uuid="+node(2).UUID.String()),
		"more tags than anybody has": append(want.Tags(), func() (more []string) {
			for i := range 30 {
				more = append(more, fmt.Sprint("more", i))
			}
			return more
		}()...),
	} {
		if _, err := ParseMember(want.Name, want.Address, tags); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

var farAhead = time.Date(2199, 6, 1, 0, 0, 0, 0, time.UTC)

func TestAForeignTimeIsComparedAsNoLaterThanNow(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		name string
		a, b time.Time
		want bool
	}{
		{"later", now, now.Add(-1), true},
		{"earlier", now.Add(-1), now, false},
		{"the same", now, now, false},
		{"later by hours that clocks differ", now.Add(20 * time.Hour), now.Add(time.Hour), true},
		{"years ahead is later than before", farAhead, now.Add(-1), true},
		{"years ahead is, between that and now, as it is told", farAhead, now, true},
		{"years ahead is not later than in an hour", farAhead, now.Add(time.Hour), false},
		{"in an hour is later than years ahead", now.Add(time.Hour), farAhead, true},
		{"of two that are years ahead, as they are told", farAhead.Add(1), farAhead, true},
		{"and back", farAhead, farAhead.Add(1), false},
	} {
		if got := Later(c.a, c.b, now); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestDeparturesAreKeptAsTheyAreToldAndNoMoreThanFit(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	mine := Departures{node(1).UUID: now, node(2).UUID: farAhead}
	mine.Add(Departures{node(1).UUID: now.Add(-time.Hour), node(2).UUID: farAhead.Add(-time.Hour), node(3).UUID: farAhead}, now)
	if d := cmp.Diff(Departures{node(1).UUID: now, node(2).UUID: farAhead, node(3).UUID: farAhead}, mine); d != "" {
		t.Error(d)
	}
	flood := Departures{}
	for i := range MaxDepartures + 100 {
		flood[uuid.NewSHA1(uuid.NameSpaceDNS, fmt.Append(nil, i))] = now
	}
	flood[node(1).UUID] = now.Add(time.Hour)
	mine.Add(flood, now)
	if len(mine) != MaxDepartures || !mine[node(1).UUID].Equal(now.Add(time.Hour)) || !mine[node(3).UUID].Equal(farAhead) {
		t.Errorf("%d, and of those that were there %v, %v", len(mine), mine[node(1).UUID], mine[node(3).UUID])
	}
}

func TestMerge(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	self := node(1)
	uuidOf := func(m, other Member) Member { m.UUID = other.UUID; return m }
	addressOf := func(m, other Member) Member { m.Address = other.Address; return m }
	hostOf := func(m, other Member) Member { m.Host = other.Host; return m }
	version := func(m Member, v string) Member { m.Version = v; return m }
	registered := func(m Member, at time.Time) Member { m.Registered = at; return m }
	early, late := now.Add(-time.Hour), now.Add(-time.Minute)

	for _, c := range []struct {
		name        string
		known, seen []Member
		departed    Departures
		want        []string // names
		refused     []string // name: part of the reason
	}{
		{name: "a newcomer is taken in", seen: []Member{node(2)}, want: []string{node(2).Name}},
		{name: "we are not our own member", seen: []Member{self, node(2)}, want: []string{node(2).Name}},
		{name: "a silent member stays", known: []Member{node(2)}, seen: []Member{node(3)}, want: []string{node(2).Name, node(3).Name}},
		{name: "nobody is seen: all stay", known: []Member{node(2), node(3)}, want: []string{node(2).Name, node(3).Name}},
		{name: "our own UUID under another name is refused", seen: []Member{uuidOf(node(2), self)}, refused: []string{node(2).Name + ": has the UUID of xivo1 (10.0.0.1"}},
		{name: "another version is refused as a newcomer, and both are told", seen: []Member{version(node(2), "16.04")}, refused: []string{node(2).Name + ": runs XiVO 16.04, xivo1 runs 16.03"}},
		{name: "a known member may change its version", known: []Member{node(2)}, seen: []Member{version(node(2), "16.04")}, want: []string{node(2).Name}},
		{name: "the same UUID alive twice: the known one stays, although it came later", known: []Member{registered(node(2), late)},
			seen: []Member{registered(node(2), late), registered(uuidOf(node(3), node(2)), early)}, want: []string{node(2).Name}, refused: []string{node(3).Name + ": has the UUID of xivo2 (10.0.0.2"}},
		{name: "the same UUID twice among newcomers: the one registered first is taken", seen: []Member{registered(node(2), late), registered(uuidOf(node(3), node(2)), early)},
			want: []string{node(3).Name}, refused: []string{node(2).Name + ": has the UUID of xivo3"}},
		{name: "a member under a new name and address is the same member", known: []Member{node(2)}, seen: []Member{uuidOf(node(3), node(2))}, want: []string{node(3).Name}},
		{name: "the address of a silent member is taken over", known: []Member{node(2)}, seen: []Member{addressOf(node(3), node(2))}, want: []string{node(3).Name}},
		{name: "the address of a living member is not", known: []Member{node(2)}, seen: []Member{node(2), addressOf(node(3), node(2))}, want: []string{node(2).Name},
			refused: []string{node(3).Name + ": says that it is at the address of xivo2"}},
		{name: "our own address is not, either", seen: []Member{addressOf(node(2), self)}, refused: []string{node(2).Name + ": says that it is at the address of xivo1"}},
		{name: "the same host name is taken in", seen: []Member{node(2), hostOf(node(3), node(2))}, want: []string{node(2).Name, node(3).Name}},
		{name: "a member that left goes, silent or not", known: []Member{node(2), node(3)}, seen: []Member{node(2)},
			departed: Departures{node(2).UUID: now, node(3).UUID: now}},
		{name: "one that left as a clock tells that is ahead by years, and did not register since", known: []Member{node(2)}, seen: []Member{node(2)}, departed: Departures{node(2).UUID: farAhead}},
		{name: "one that registered after that is back", seen: []Member{registered(node(2), farAhead.Add(1))}, departed: Departures{node(2).UUID: farAhead}, want: []string{node(2).Name}},
		{name: "one whose clock is ahead by years left after it registered", known: []Member{registered(node(2), farAhead)}, departed: Departures{node(2).UUID: farAhead.Add(1)}},
		{name: "one whose clock is ahead by years left, as one tells whose clock is right", seen: []Member{registered(node(2), farAhead)}, departed: Departures{node(2).UUID: late}, want: []string{node(2).Name}},
		{name: "the same UUID twice among newcomers: of two clocks that are ahead by years, the one that is less ahead", seen: []Member{registered(node(2), farAhead), registered(uuidOf(node(3), node(2)), farAhead.Add(time.Hour))},
			want: []string{node(2).Name}, refused: []string{node(3).Name + ": has the UUID of xivo2"}},
		{name: "one that registered after it had left is back", known: nil, seen: []Member{registered(node(2), now)}, departed: Departures{node(2).UUID: late}, want: []string{node(2).Name}},
	} {
		t.Run(c.name, func(t *testing.T) {
			members, refused := Merge(self, c.known, c.seen, c.departed, now, now)
			got := map[string]bool{}
			for _, m := range members {
				got[m.Name] = true
			}
			want := map[string]bool{}
			for _, name := range c.want {
				want[name] = true
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if len(refused) != len(c.refused) {
				t.Fatalf("refused: %v, want %q", refused, c.refused)
			}
			for i, r := range refused {
				if told := r.Member.Name + ": " + r.Reason; !strings.HasPrefix(told, c.refused[i]) {
					t.Errorf("refused: %s, want %s", told, c.refused[i])
				}
			}
		})
	}
}

func TestNodesWithOneHostNameAreTold(t *testing.T) {
	other := node(2)
	other.Host = node(1).Host
	if notes := SameHost(node(1), []Member{node(3)}); notes != nil {
		t.Errorf("nobody has the name of another: %q", notes)
	}
	notes := SameHost(node(1), []Member{other, node(3)})
	if len(notes) != 1 || !strings.Contains(notes[0], "2 nodes have the host name xivo1") || !strings.Contains(notes[0], other.UUID.String()) {
		t.Errorf("notes: %q", notes)
	}
}

// Every topology lets every node hear every other within its hops.
func TestTopologiesReachEverybody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(t, "nodes")
		kind := rapid.SampledFrom([]string{"mesh", "ring", "hub"}).Draw(t, "kind")
		topology := Topology{Kind: kind, Hub: node(1).Address}
		links := map[uuid.UUID]Links{}
		for i := 1; i <= n; i++ {
			var others []Member
			for j := 1; j <= n; j++ {
				if j != i {
					others = append(others, node(j))
				}
			}
			l, err := topology.Desired(node(i), others)
			if err != nil {
				t.Fatal(err)
			}
			links[node(i).UUID] = l
		}
		for i := 1; i <= n; i++ {
			heard := map[uuid.UUID]bool{node(i).UUID: true}
			frontier := []uuid.UUID{node(i).UUID}
			for range links[node(i).UUID].MaxHops {
				var next []uuid.UUID
				for _, id := range frontier {
					for _, up := range links[id].Upstreams {
						if !heard[up.UUID] {
							heard[up.UUID] = true
							next = append(next, up.UUID)
						}
					}
				}
				frontier = next
			}
			if len(heard) != n {
				t.Fatalf("%s of %d: node %d hears %d", kind, n, i, len(heard))
			}
		}
	})
}
