// Package mesh says who the members of a mesh are and which links each of them
// should have. It wraps nothing: it is pure, and only firstboot imports it.
package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// ServiceName is the name under which every node registers itself in Consul.
const ServiceName = "xivo-mesh"

// Member is a node of the mesh as this one knows it.
type Member struct {
	UUID    uuid.UUID `json:"uuid"`
	Host    string    `json:"host"`
	Name    string    `json:"name"` // Consul's datacenter and node name
	Address string    `json:"address"`
	Version string    `json:"version"`
	KeyID   string    `json:"key_id"`
	// Since is when this node first took the member in; Seen when it last
	// answered over Consul.
	Since time.Time `json:"since"`
	Seen  time.Time `json:"seen"`
}

// Tags is how a member tells the others about itself. Name and address are the
// registration's own.
func (m Member) Tags() []string {
	return []string{
		"uuid=" + m.UUID.String(),
		"version=" + m.Version,
		"host=" + m.Host,
		"key=" + m.KeyID,
	}
}

// ParseMember reads what Tags wrote. A registration without a usable UUID and
// IPv4 address is an error: half a member is none.
func ParseMember(name, address string, tags []string) (Member, error) {
	m := Member{Name: name, Address: address}
	var err error
	for _, tag := range tags {
		key, value, _ := strings.Cut(tag, "=")
		switch key {
		case "uuid":
			m.UUID, err = uuid.Parse(value)
			if err != nil {
				return Member{}, fmt.Errorf("member %s: uuid %q: %w", name, value, err)
			}
		case "version":
			m.Version = shown(value)
		case "host":
			m.Host = shown(value)
		case "key":
			m.KeyID = shown(value)
		}
	}
	if m.UUID == uuid.Nil {
		return Member{}, fmt.Errorf("member %s tells no uuid", name)
	}
	if a, err := netip.ParseAddr(address); err != nil || !a.Is4() {
		return Member{}, fmt.Errorf("member %s tells %q, which is not an IPv4 address", name, address)
	}
	return m, nil
}

// shown makes what another machine says of itself fit for logs, terminals and
// the columns of a database: printable, and no longer than a host name may be.
func shown(s string) string {
	const longest = 64
	runes := []rune(s)
	for i, r := range runes {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			runes[i] = '?'
		}
	}
	return string(runes[:min(len(runes), longest)])
}

// Refusal is a newcomer that was not taken in, and why.
type Refusal struct {
	Member Member `json:"member"`
	Reason string `json:"reason"`
}

// Merge takes what was seen now into what was known. Silence removes nothing:
// a known member that was not seen stays. A newcomer is refused when it has
// our UUID, or one that a living member has at another address, or another
// XiVO version; a known member keeps its place when its version changes.
// A newcomer with the address of a silent member replaces it.
func Merge(self Member, known, seen []Member, now time.Time) (members []Member, refused []Refusal) {
	byUUID := map[uuid.UUID]Member{}
	for _, m := range known {
		byUUID[m.UUID] = m
	}
	living := map[uuid.UUID]bool{}
	for _, m := range seen {
		living[m.UUID] = true
	}

	taken := map[uuid.UUID]string{}
	for _, m := range sorted(seen) {
		old, isKnown := byUUID[m.UUID]
		first, twice := taken[m.UUID]
		switch {
		case m.UUID == self.UUID && m.Name == self.Name:
			continue
		case m.UUID == self.UUID:
			refused = append(refused, Refusal{m, fmt.Sprintf("has our own UUID %s: one of the two is an unsealed copy", m.UUID)})
			continue
		case twice:
			refused = append(refused, Refusal{m, fmt.Sprintf("has the UUID of %s, which stays: one of the two is an unsealed copy", first)})
			continue
		case isKnown && old.Name != m.Name && aliveAs(seen, old):
			refused = append(refused, Refusal{m, fmt.Sprintf("has the UUID of %s, which stays: one of the two is an unsealed copy", old.Name)})
			continue
		case !isKnown && m.Version != self.Version:
			refused = append(refused, Refusal{m, fmt.Sprintf("runs XiVO %s, the mesh runs %s: upgrade it first", m.Version, self.Version)})
			continue
		}
		taken[m.UUID] = m.Name
		m.Since, m.Seen = now, now
		if isKnown {
			m.Since = old.Since
		}
		byUUID[m.UUID] = m
		for id, other := range byUUID {
			if id != m.UUID && other.Address == m.Address && !living[id] {
				delete(byUUID, id)
			}
		}
	}

	for _, m := range byUUID {
		if m.UUID != self.UUID {
			members = append(members, m)
		}
	}
	return sorted(members), refused
}

func aliveAs(seen []Member, m Member) bool {
	return slices.ContainsFunc(seen, func(s Member) bool { return s.UUID == m.UUID && s.Name == m.Name })
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
	// Hub is the address of the hub.
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
		if self.Address == t.Hub || self.Host == t.Hub {
			return Links{others, 2}, nil
		}
		for _, m := range others {
			if m.Address == t.Hub || m.Host == t.Hub {
				return Links{[]Member{m}, 2}, nil
			}
		}
		return Links{}, fmt.Errorf("the hub %s is not a member of the mesh (yet)", t.Hub)
	}
	return Links{}, errors.New("topology is neither mesh, ring nor hub")
}
