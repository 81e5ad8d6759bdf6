package mesh

import (
	"fmt"
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
	for name, bad := range map[string]Member{
		"no uuid":            {Name: "x", Address: "10.0.0.1"},
		"address is a name":  {Name: "x", Address: "xivo", UUID: want.UUID},
		"address is IPv6":    {Name: "x", Address: "::1", UUID: want.UUID},
		"address is missing": {Name: "x", UUID: want.UUID},
	} {
		if _, err := ParseMember(bad.Name, bad.Address, bad.Tags()); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestMerge(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	self := node(1)
	with := func(m Member, change func(*Member)) Member { change(&m); return m }

	for _, c := range []struct {
		name        string
		known, seen []Member
		want        []string // names
		refused     int
	}{
		{"a newcomer is taken in", nil, []Member{node(2)}, []string{node(2).Name}, 0},
		{"we are not our own member", nil, []Member{self, node(2)}, []string{node(2).Name}, 0},
		{"a silent member stays", []Member{node(2)}, []Member{node(3)}, []string{node(2).Name, node(3).Name}, 0},
		{"our own UUID under another name is refused", nil, []Member{with(node(2), func(m *Member) { m.UUID = self.UUID })}, nil, 1},
		{"another version is refused as a newcomer", nil, []Member{with(node(2), func(m *Member) { m.Version = "16.04" })}, nil, 1},
		{"a known member may change its version", []Member{node(2)}, []Member{with(node(2), func(m *Member) { m.Version = "16.04" })}, []string{node(2).Name}, 0},
		{"the same UUID alive twice: the known one stays", []Member{node(2)}, []Member{node(2), with(node(3), func(m *Member) { m.UUID = node(2).UUID })}, []string{node(2).Name}, 1},
		{"the same UUID twice among newcomers: one is taken", nil, []Member{node(2), with(node(3), func(m *Member) { m.UUID = node(2).UUID })}, []string{node(2).Name}, 1},
		{"the address of a silent member is taken over", []Member{node(2)}, []Member{with(node(3), func(m *Member) { m.Address = node(2).Address })}, []string{node(3).Name}, 0},
		{"the address of a living member is not", []Member{node(2)}, []Member{node(2), with(node(3), func(m *Member) { m.Address = node(2).Address })}, []string{node(2).Name, node(3).Name}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			members, refused := Merge(self, c.known, c.seen, now)
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
			if len(refused) != c.refused {
				t.Errorf("refused: %v", refused)
			}
		})
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
