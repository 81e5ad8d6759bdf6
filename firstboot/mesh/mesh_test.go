package mesh

import (
	"fmt"
	"strings"
	"testing"

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

func TestWhoseAddressItIs(t *testing.T) {
	at := func(i int, outside ...string) Member { m := node(i); m.Outside = outside; return m }
	const router = "203.0.113.1"
	members := []Member{at(1, "192.0.2.1", router), at(2, "192.0.2.2", router), at(3, "10.0.0.2")}
	for _, c := range []struct {
		name, address, want string
	}{
		{"one in the mesh", "10.0.0.1", "xivo1"},
		{"one outside it", "192.0.2.2", "xivo2"},
		{"nobody's", "192.0.2.9", ""},
		{"that of the router of two", router, ""},
		{"one in the mesh, which another one has outside it", "10.0.0.2", "xivo2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if m, ok := Of(c.address, members); m.Host != c.want || ok != (c.want != "") {
				t.Errorf("it is that of %q, %t; want %q", m.Host, ok, c.want)
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
