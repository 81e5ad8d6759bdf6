// Package mesh says who the members of a mesh are and which links each of them
// should have. It wraps nothing: it is pure, and only firstboot imports it.
package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Member is a node of the mesh as this one knows it.
type Member struct {
	UUID uuid.UUID `json:"uuid"`
	Host string    `json:"host"`
	Name string    `json:"name"` // Consul's datacenter and node name
	// Address is the one that it has in the mesh.
	Address string `json:"address"`
	// Outside are the other IPv4 addresses of its machine, as it tells them.
	Outside []string `json:"outside,omitempty"`
	Version string   `json:"version"`
	KeyID   string   `json:"key_id"`
	// Seen is when it was last reached.
	Seen time.Time `json:"seen"`
	// Suspended: it was not reached for so long that nobody is to wait for it.
	Suspended bool `json:"suspended,omitempty"`
}

func (m Member) String() string { return fmt.Sprintf("%s (%s, %s)", m.Host, m.Address, m.UUID) }

// Of returns the one of these members whose address this is, in the mesh or else outside
// it; false where it is nobody's, or that of several: all machines behind a router tell
// the router's.
func Of(address string, members []Member) (Member, bool) {
	if i := slices.IndexFunc(members, func(m Member) bool { return m.Address == address }); i >= 0 {
		return members[i], true
	}
	outside := func(m Member) bool { return slices.Contains(m.Outside, address) }
	i := slices.IndexFunc(members, outside)
	if i < 0 || slices.ContainsFunc(members[i+1:], outside) {
		return Member{}, false
	}
	return members[i], true
}

// SameHost tells the host names that several nodes have: they work, since every
// other name carries the UUID, but people cannot tell them apart.
func SameHost(self Member, members []Member) []string {
	byHost := map[string][]Member{}
	for _, m := range append(sorted(members), self) {
		byHost[m.Host] = append(byHost[m.Host], m)
	}
	var notes []string
	for host, ms := range byHost {
		if len(ms) > 1 {
			notes = append(notes, fmt.Sprintf("%d nodes have the host name %s: %s", len(ms), host, list(ms)))
		}
	}
	slices.Sort(notes)
	return notes
}

func list(ms []Member) string {
	var all []string
	for _, m := range ms {
		all = append(all, m.Address+" "+m.UUID.String())
	}
	return strings.Join(all, ", ")
}

func sorted(ms []Member) []Member {
	out := slices.Clone(ms)
	slices.SortFunc(out, func(a, b Member) int {
		return cmp.Or(cmp.Compare(a.UUID.String(), b.UUID.String()), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// Topology says which members a node takes messages from.
type Topology struct {
	// Kind is mesh, ring or hub.
	Kind string
	// Hub is the address of the hub in the mesh.
	Hub string
}

// Links is what one node's federation should be.
type Links struct {
	Upstreams []Member
	// MaxHops is how often a message may be passed on, so that every member
	// hears every other.
	MaxHops int
}

// Desired returns the links of self among the members (self not counted in).
//
//	mesh: everybody, 1 hop
//	ring: both neighbours by UUID, half the way round
//	hub:  the hub, 2 hops; the hub itself: everybody
func (t Topology) Desired(self Member, members []Member) (Links, error) {
	others := sorted(members)
	switch t.Kind {
	case "mesh":
		return Links{others, 1}, nil
	case "ring":
		ring := sorted(append(slices.Clone(others), self))
		if len(ring) <= 3 {
			return Links{others, 1}, nil
		}
		i := slices.IndexFunc(ring, func(m Member) bool { return m.UUID == self.UUID })
		left, right := ring[(i+len(ring)-1)%len(ring)], ring[(i+1)%len(ring)]
		return Links{sorted([]Member{left, right}), len(ring) / 2}, nil
	case "hub":
		if self.Address == t.Hub {
			return Links{others, 2}, nil
		}
		for _, m := range others {
			if m.Address == t.Hub {
				return Links{[]Member{m}, 2}, nil
			}
		}
		return Links{}, fmt.Errorf("the hub %s is not a member of the mesh (yet)", t.Hub)
	}
	return Links{}, errors.New("topology is neither mesh, ring nor hub")
}
