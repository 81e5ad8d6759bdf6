// Package mesh says who the members of a mesh are and which links each of them
// should have. It wraps nothing: it is pure, and only firstboot imports it.
package mesh

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
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
	// Registered is when the member came into the mesh, as it says itself.
	Registered time.Time `json:"registered"`
	// Seen is when it last answered over Consul.
	Seen time.Time `json:"seen"`
	// Suspended: it has not answered for so long that nobody is to wait for it.
	Suspended bool `json:"suspended,omitempty"`
}

func (m Member) String() string { return fmt.Sprintf("%s (%s, %s)", m.Host, m.Address, m.UUID) }

// Tags is how a member tells the others about itself. Name and address are the
// registration's own.
func (m Member) Tags() []string {
	tags := []string{
		"uuid=" + m.UUID.String(),
		"version=" + m.Version,
		"host=" + m.Host,
		"key=" + m.KeyID,
	}
	if !m.Registered.IsZero() {
		tags = append(tags, "registered="+m.Registered.UTC().Format(time.RFC3339Nano))
	}
	return tags
}

// What a registration may have: Tags makes five, of some hundred bytes.
const (
	maxTags = 32
	maxTag  = 1024
)

// ParseMember reads what Tags wrote. A registration without a usable UUID and
// IPv4 address is an error: every link and every directory needs both. So are a
// key that is there twice, more or longer tags than anybody needs, an address at
// which no other machine can be, and a time of no year in which it can be.
func ParseMember(name, address string, tags []string) (Member, error) {
	m := Member{Name: name, Address: address}
	if len(tags) > maxTags {
		return Member{}, fmt.Errorf("member %s has %d tags", name, len(tags))
	}
	seen := map[string]bool{}
	var err error
	for _, tag := range tags {
		key, value, _ := strings.Cut(tag, "=")
		if len(tag) > maxTag {
			return Member{}, fmt.Errorf("member %s has a tag of %d bytes", name, len(tag))
		}
		if seen[key] {
			return Member{}, fmt.Errorf("member %s tells its %q twice", name, shown(key))
		}
		seen[key] = true
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
		case "registered":
			m.Registered, err = ParseTime(value)
			if err != nil {
				return Member{}, fmt.Errorf("member %s: registered: %w", name, err)
			}
		}
	}
	if m.UUID == uuid.Nil {
		return Member{}, fmt.Errorf("member %s tells no uuid", name)
	}
	a, err := netip.ParseAddr(address)
	if err != nil || !a.Is4() {
		return Member{}, fmt.Errorf("member %s tells %q, which is not an IPv4 address", name, shown(address))
	}
	// Holes in a firewall, and links, lead there.
	if !a.IsGlobalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 224 {
		return Member{}, fmt.Errorf("member %s tells %s, at which no other machine can be", name, a)
	}
	return m, nil
}

// ParseTime reads a time that another node told: RFC 3339, in a year of this
// program's world. Nodes without a clock are in 1970, and those that never came
// down from a wrong one must stay readable when it is put right.
func ParseTime(s string) (time.Time, error) {
	at, err := time.Parse(time.RFC3339Nano, s)
	if err == nil && (at.Year() < 1970 || at.Year() >= 2200) {
		err = fmt.Errorf("the year %d", at.Year())
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("%q is no time: %w", shown(s), err)
	}
	return at, nil
}

// ahead is how far another node's clock may be ahead of ours, and be believed.
const ahead = 24 * time.Hour

// Later says whether a time is after another one. Either may be foreign: one that is
// more than a day after trusted, which is as late as it can be now, is compared as
// trusted. Where that makes the two equal, they are compared as they were told.
func Later(a, b, trusted time.Time) bool {
	believed := func(t time.Time) time.Time {
		if t.After(trusted.Add(ahead)) {
			return trusted
		}
		return t
	}
	if x, y := believed(a), believed(b); !x.Equal(y) {
		return x.After(y)
	}
	return a.After(b)
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

// Refusal is a living node that was not taken in, and why.
type Refusal struct {
	Member Member `json:"member"`
	Reason string `json:"reason"`
}

// Departures are the nodes that left the mesh or were forgotten by it, and when.
type Departures map[uuid.UUID]time.Time

// MaxDepartures is how many are remembered.
const MaxDepartures = 10_000

// Has says whether the member departed and did not register again since, as Later
// compares.
func (d Departures) Has(m Member, trusted time.Time) bool {
	at, ok := d[m.UUID]
	return ok && !Later(m.Registered, at, trusted)
}

// Add takes in what another node knows. Of two times for one node the later counts,
// as Later compares, and is kept as it was told. Where there is no room for all,
// those that are there stay.
func (d Departures) Add(other Departures, trusted time.Time) {
	for _, id := range slices.SortedFunc(maps.Keys(other), func(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }) {
		known, ok := d[id]
		if ok && Later(other[id], known, trusted) || !ok && len(d) < MaxDepartures {
			d[id] = other[id]
		}
	}
}

// Merge takes what was seen now into what was known. Silence removes nothing: a
// known member that was not seen stays, unless it departed, or a newcomer has
// its address. A living node is refused when it has the UUID or the address of
// another one that lives, or, as a newcomer, another XiVO version; a known
// member keeps its place when its version changes. Of two with one UUID the
// known one stays, or else the one that registered first. Now is this node's clock,
// and trusted as late as it can be now: see Later.
func Merge(self Member, known, seen []Member, departed Departures, now, trusted time.Time) (members []Member, refused []Refusal) {
	was := map[uuid.UUID]Member{}
	taken := map[uuid.UUID]Member{}
	for _, m := range known {
		if !departed.Has(m, trusted) && m.UUID != self.UUID {
			was[m.UUID], taken[m.UUID] = m, m
		}
	}
	isKnown := func(m Member) bool { return was[m.UUID].Name == m.Name }
	living := map[uuid.UUID]Member{self.UUID: self}
	byAddress := map[string]Member{self.Address: self}

	seen = slices.Clone(seen)
	slices.SortFunc(seen, func(a, b Member) int {
		known := func(m Member) int { // first
			if isKnown(m) {
				return 0
			}
			return 1
		}
		first := 0
		switch {
		case Later(b.Registered, a.Registered, trusted):
			first = -1
		case Later(a.Registered, b.Registered, trusted):
			first = 1
		}
		return cmp.Or(known(a)-known(b), first, cmp.Compare(a.Name, b.Name))
	})
	for _, m := range seen {
		refuse := func(format string, args ...any) {
			refused = append(refused, Refusal{m, fmt.Sprintf(format, args...)})
		}
		if m.UUID == self.UUID && m.Name == self.Name || departed.Has(m, trusted) {
			continue
		}
		if first, twice := living[m.UUID]; twice {
			refuse("has the UUID of %s, which stays: one of the two is a copy; give it an identity of its own with `identity: regenerate` and `xivo-firstboot run`", first)
			continue
		}
		if other, used := byAddress[m.Address]; used {
			refuse("says that it is at the address of %s, which is alive: give one of the two another `advertise`", other)
			continue
		}
		if _, back := was[m.UUID]; !back && m.Version != self.Version {
			refuse("runs XiVO %s, %s runs %s: all nodes of a mesh run one version when they join", m.Version, self.Host, self.Version)
			continue
		}
		m.Seen = now
		living[m.UUID], byAddress[m.Address], taken[m.UUID] = m, m, m
	}

	for id, m := range taken {
		if holder, used := byAddress[m.Address]; used && holder.UUID != id {
			continue // silent, and somebody else has its address
		}
		members = append(members, m)
	}
	return sorted(members), refused
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
