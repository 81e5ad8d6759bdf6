package overlay

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
)

// What is believed of others is bounded by these.
const (
	maxMembers    = 1000
	maxTombstones = 10_000
	maxEndpoints  = 8
	maxText       = 64
	maxAlarms     = 100
	maxBoots      = 8 // of a member
	// A tombstone ends registrations up to this one, and a registration may be
	// higher: no tombstone can keep a node out for good.
	maxEnded      = 1 << 40
	maxRegistered = 1 << 41
	maxSerial     = 1 << 62
)

// Member is what a node tells of itself. UUID, key and address are its own for life.
type Member struct {
	UUID    uuid.UUID  `json:"uuid"`
	Host    string     `json:"host"`
	Key     Key        `json:"key"`
	Address netip.Addr `json:"addr"`
	// Endpoints are where its port may be reached, UDP and TCP.
	Endpoints []netip.AddrPort `json:"ends,omitempty"`
	// Boot names its boot.
	Boot    string `json:"boot"`
	Version string `json:"xivo"`
	// Registered counts its registrations: a person, or a new instance, makes one.
	Registered uint64 `json:"reg"`
	// Serial counts the changes of what it tells.
	Serial uint64 `json:"ser"`
}

func (m Member) String() string { return fmt.Sprintf("%s (%s, %s)", m.Host, m.Address, m.UUID) }

// newer says whether m was told after o.
func (m Member) newer(o Member) bool {
	return cmp.Or(cmp.Compare(m.Registered, o.Registered), cmp.Compare(m.Serial, o.Serial)) > 0
}

// sane refuses what no node of ours tells. The range is not valid where members
// bring their own network.
func (m Member) sane(in netip.Prefix) error {
	switch {
	case m.UUID == uuid.Nil || m.Key == Key{}:
		return errors.New("it tells no UUID or no key")
	case !host(m.Address, in):
		return fmt.Errorf("its address %s is no host of %s", m.Address, in)
	case !printable(m.Host) || !printable(m.Version) || !printable(m.Boot):
		return errors.New("its host name, version or boot is no printable text of 1 to 64 characters")
	case m.Registered > maxRegistered || m.Serial > maxSerial:
		return errors.New("its counters are beyond all that a node counts to")
	case len(m.Endpoints) > maxEndpoints:
		return fmt.Errorf("it tells %d endpoints", len(m.Endpoints))
	}
	for _, e := range m.Endpoints {
		if !reachable(e, in) {
			return fmt.Errorf("its endpoint %s is none that another node can reach", e)
		}
	}
	return nil
}

func host(a netip.Addr, in netip.Prefix) bool {
	if !in.IsValid() {
		return a.Is4() && !a.IsUnspecified() && !a.IsMulticast()
	}
	return in.Contains(a) && a != in.Masked().Addr() && in.Contains(a.Next())
}

// reachable says whether an endpoint may be one of another machine: loopback,
// link-local (where clouds have their metadata) and the overlay itself are not.
func reachable(e netip.AddrPort, in netip.Prefix) bool {
	a := e.Addr()
	return a.IsGlobalUnicast() && !a.Is4In6() && a.Zone() == "" && e.Port() != 0 && a != netip.AddrFrom4([4]byte{255, 255, 255, 255}) &&
		!(in.IsValid() && in.Contains(a))
}

func printable(s string) bool {
	n := 0
	for _, r := range s {
		if n++; r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return false
		}
	}
	return 0 < n && n <= maxText
}

// Tombstone says that a node left the mesh, or was forgotten by it: its
// registrations up to this one are over.
type Tombstone struct {
	UUID       uuid.UUID  `json:"uuid"`
	Host       string     `json:"host"`
	Address    netip.Addr `json:"addr"`
	Registered uint64     `json:"reg"`
	// At is for people. Counters decide.
	At time.Time `json:"at"`
}

func (t Tombstone) sane(in netip.Prefix) bool {
	return t.UUID != uuid.Nil && host(t.Address, in) && printable(t.Host) && t.Registered <= maxEnded
}

// Why is the kind of a refusal.
type Why string

const (
	UUIDTaken    Why = "uuid-taken"    // another key has the UUID: one of the two is a copy
	KeyTaken     Why = "key-taken"     // another UUID has the key
	AddressTaken Why = "address-taken" // a newcomer draws again; Taken has what is not free
	Departed     Why = "departed"      // needs a registration higher than Registered
	OtherVersion Why = "version"       // of XiVO
	OtherNetwork Why = "network"       // another mode or range
	Itself       Why = "itself"        // this node was asked by itself
	Invalid      Why = "invalid"       // what it tells cannot be
	Full         Why = "full"          // the mesh has all the members that it can have
)

// Refusal is why a node is not let in, told to it.
type Refusal struct {
	Why    Why    `json:"why"`
	Reason string `json:"reason"`
	// Taken are all addresses that are not free, with AddressTaken.
	Taken []netip.Addr `json:"taken,omitempty"`
	// Registered is the registration that is over, with Departed.
	Registered uint64 `json:"registered,omitempty"`
}

func (r *Refusal) Error() string { return "refused: " + r.Reason }

// Terms are what a newcomer must have in common with the mesh.
type Terms struct {
	// Mode is overlay or direct.
	Mode  string       `json:"mode"`
	Range netip.Prefix `json:"range"`
}

// book is what this node knows of the others: members and tombstones, which every
// node has and merges. Silence removes nothing from it.
type book struct {
	terms Terms

	mu         sync.Mutex
	self       Member
	members    map[uuid.UUID]Member
	tombstones map[uuid.UUID]Tombstone
	// alarms are conflicts, and when each was seen last.
	alarms map[string]time.Time
	now    func() time.Time
	// boots are those that each key was seen in, the last one last. None comes back: a
	// kernel names each of its boots anew.
	boots map[Key][]string
	// changed has one entry after a change that nobody looked at.
	changed chan struct{}
}

func newBook(terms Terms, self Member) *book {
	return &book{
		terms: terms, self: self,
		members: map[uuid.UUID]Member{}, tombstones: map[uuid.UUID]Tombstone{}, boots: map[Key][]string{}, alarms: map[string]time.Time{}, now: time.Now,
		changed: make(chan struct{}, 1),
	}
}

func (b *book) touch() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// known is a copy of all of it.
func (b *book) known() (self Member, members []Member, tombstones []Tombstone) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.members {
		members = append(members, m)
	}
	for _, t := range b.tombstones {
		tombstones = append(tombstones, t)
	}
	slices.SortFunc(members, func(a, b Member) int { return a.Address.Compare(b.Address) })
	slices.SortFunc(tombstones, func(a, b Tombstone) int { return slices.Compare(a.UUID[:], b.UUID[:]) })
	return b.self, members, tombstones
}

// refusal says why a node that has this to say of itself is not let in; nil lets it
// in. Nothing is changed. The version counts for newcomers only: where a member has
// another one, the mesh is being upgraded.
func (b *book) refusal(m Member, terms Terms) *Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.conflict(m); r != nil {
		return r
	}
	if _, member := b.members[m.UUID]; member {
		return nil
	}
	if terms.Mode != b.terms.Mode || terms.Range != b.terms.Range {
		return &Refusal{Why: OtherNetwork, Reason: fmt.Sprintf("%s has the network %s %s, %s has %s %s: all nodes of a mesh have one", m.Host, terms.Mode, terms.Range, b.self.Host, b.terms.Mode, b.terms.Range)}
	}
	if m.Version != b.self.Version {
		return &Refusal{Why: OtherVersion, Reason: fmt.Sprintf("%s runs XiVO %s, %s runs %s: all nodes of a mesh run one version when they join", m.Host, m.Version, b.self.Host, b.self.Version)}
	}
	return nil
}

// conflict says what speaks against a member, whoever tells of it.
func (b *book) conflict(m Member) *Refusal {
	if err := m.sane(b.terms.Range); err != nil {
		return &Refusal{Why: Invalid, Reason: fmt.Sprintf("%q tells what cannot be: %v", m.Host, err)}
	}
	if m.UUID == b.self.UUID && m.Key == b.self.Key {
		return &Refusal{Why: Itself, Reason: "it is this node itself"}
	}
	if t, over := b.tombstones[m.UUID]; over && m.Registered <= t.Registered {
		return &Refusal{Why: Departed, Registered: t.Registered, Reason: fmt.Sprintf("%s left the mesh, or was forgotten by it, at %s: on it, run `xivo-firstboot leave --undo` or `xivo-firstboot run`", m.Host, t.At.UTC().Format(time.DateTime))}
	}
	was, member := b.members[m.UUID]
	others := append(b.others(m.UUID), b.self)
	if m.UUID == b.self.UUID {
		was, member = b.self, true
	}
	if member && was.Key != m.Key {
		return &Refusal{Why: UUIDTaken, Reason: fmt.Sprintf("%s has the UUID of %s, which stays: one of the two is a copy; give it an identity of its own with `identity: regenerate` and `xivo-firstboot run`, or if %s is gone for good, `forget` it first", m, was, was.Host)}
	}
	if member && was.Address != m.Address {
		return &Refusal{Why: Invalid, Reason: fmt.Sprintf("%s is known at %s, which a member keeps for life", m, was.Address)}
	}
	for _, o := range others {
		if o.Key == m.Key {
			return &Refusal{Why: KeyTaken, Reason: fmt.Sprintf("%s has the key of %s: one of the two is a copy; remove %s below its state folder, and run `xivo-firstboot run`", m, o, KeyFile)}
		}
	}
	if who, taken := b.holder(m); taken {
		return &Refusal{Why: AddressTaken, Taken: b.taken(m.UUID), Reason: fmt.Sprintf("%s has the overlay address of %s, which stays", m, who)}
	}
	if !member && len(b.members) >= maxMembers {
		return &Refusal{Why: Full, Reason: fmt.Sprintf("the mesh has %d members, and no place for %s", len(b.members), m)}
	}
	return nil
}

func (b *book) others(id uuid.UUID) []Member {
	var out []Member
	for _, o := range b.members {
		if o.UUID != id {
			out = append(out, o)
		}
	}
	return out
}

// holder is who else has, or had, the member's address.
func (b *book) holder(m Member) (who string, taken bool) {
	for _, o := range append(b.others(m.UUID), b.self) {
		if o.UUID != m.UUID && o.Address == m.Address {
			return o.String(), true
		}
	}
	if _, member := b.members[m.UUID]; member || !b.terms.Range.IsValid() {
		return "", false
	}
	for _, t := range b.tombstones {
		if t.UUID != m.UUID && t.Address == m.Address {
			return fmt.Sprintf("%s (%s, %s), which left", t.Host, t.Address, t.UUID), true
		}
	}
	return "", false
}

// taken are the addresses that others have, or had.
func (b *book) taken(id uuid.UUID) []netip.Addr {
	var out []netip.Addr
	for _, o := range append(b.others(id), b.self) {
		if o.UUID != id {
			out = append(out, o.Address)
		}
	}
	for _, t := range b.tombstones {
		if t.UUID != id {
			out = append(out, t.Address)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// meet takes in what a node proved of itself: it is as it says now, whatever it or
// others said before.
func (b *book) meet(m Member) *Refusal {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r := b.conflict(m); r != nil {
		return r
	}
	b.seen(m)
	was := b.members[m.UUID]
	if was.newer(m) {
		m.Serial = was.Serial
	}
	if !equal(was, m) {
		b.members[m.UUID] = m
		b.touch()
	}
	return nil
}

// seen notes the boot that a member tells of. One that was over and is back is that of
// a second machine with the same key and UUID: all of the disk was copied.
func (b *book) seen(m Member) {
	boots := b.boots[m.Key]
	switch at := slices.Index(boots, m.Boot); {
	case at == len(boots)-1 && at >= 0:
		return
	case at >= 0:
		b.alarm(fmt.Sprintf("two machines are %s: one is a copy of the other's disk, key and all; switch one of them off, and give it an identity of its own with `xivo-firstboot run --confirm`", m))
		boots = slices.Delete(boots, at, at+1)
	}
	if len(boots) >= maxBoots {
		boots = boots[1:]
	}
	b.boots[m.Key] = append(boots, m.Boot)
}

// merge takes in what another node tells of others: what is newer, can be, and
// contradicts nothing that is known. fresh are the tombstones that were new.
func (b *book) merge(members []Member, tombstones []Tombstone) (fresh []Tombstone) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range tombstones {
		have, ok := b.tombstones[t.UUID]
		switch {
		case !t.sane(b.terms.Range) || ok && have.Registered >= t.Registered:
			continue
		case !ok && len(b.tombstones) >= maxTombstones:
			b.alarm(fmt.Sprintf("there are %d tombstones, and that of %s is not kept", maxTombstones, t.Host))
			continue
		}
		b.tombstones[t.UUID] = t
		if m, member := b.members[t.UUID]; member && m.Registered <= t.Registered {
			delete(b.members, t.UUID)
		}
		fresh = append(fresh, t)
	}
	changed := len(fresh) > 0
	for _, m := range members {
		if m.UUID == b.self.UUID && m.Key == b.self.Key {
			// Told by this node in a life that it lost the record of, or made up.
			if !b.self.newer(m) && !equal(m, b.self) && m.Serial < maxSerial && m.sane(b.terms.Range) == nil {
				b.self.Serial = max(b.self.Serial, m.Serial) + 1
				changed = true
			}
			continue
		}
		if was, ok := b.members[m.UUID]; ok && was.Key == m.Key && !m.newer(was) {
			continue
		}
		switch r := b.conflict(m); {
		case r == nil:
			b.seen(m)
			b.members[m.UUID] = m
			changed = true
		default:
			b.doubt(r)
		}
	}
	if changed {
		b.touch()
	}
	return fresh
}

// bury ends the registration of a member, or of this node, and returns who it was, and
// the tombstone.
func (b *book) bury(id uuid.UUID, now time.Time) (Member, Tombstone, error) {
	b.mu.Lock()
	m, ok := b.members[id]
	if id == b.self.UUID {
		m, ok = b.self, true
	}
	b.mu.Unlock()
	if !ok {
		return Member{}, Tombstone{}, fmt.Errorf("overlay: %s is no member of the mesh", id)
	}
	t := Tombstone{UUID: id, Host: m.Host, Address: m.Address, Registered: m.Registered, At: now.UTC()}
	b.merge(nil, []Tombstone{t})
	return m, t, nil
}

// departed says whether this node's own registration is over, and since when.
func (b *book) departed() (time.Time, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t, over := b.tombstones[b.self.UUID]
	return t.At, over && b.self.Registered <= t.Registered
}

// tell changes what this node tells of itself, and says whether that is a change.
func (b *book) tell(change func(*Member)) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.self
	change(&b.self)
	if equal(was, b.self) {
		return false
	}
	b.self.Serial++
	b.touch()
	return true
}

// alarmTime is how long a conflict is told after it was seen: a copy says hello more
// often than that.
const alarmTime = 10 * time.Minute

// alarm keeps a conflict that a person must end.
func (b *book) alarm(text string) {
	maps.DeleteFunc(b.alarms, func(_ string, at time.Time) bool { return b.now().Sub(at) > alarmTime })
	if _, known := b.alarms[text]; known || len(b.alarms) < maxAlarms {
		b.alarms[text] = b.now()
	}
}

// doubt keeps what speaks against another node, where it is a conflict of two.
func (b *book) doubt(r *Refusal) {
	switch r.Why {
	case UUIDTaken, KeyTaken, AddressTaken, Full:
		b.alarm(r.Reason)
	}
}

// notice is doubt for who does not hold the lock.
func (b *book) notice(r *Refusal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.doubt(r)
}

// conflicts are those that were seen lately.
func (b *book) conflicts() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for text, at := range b.alarms {
		if b.now().Sub(at) <= alarmTime {
			all = append(all, text)
		}
	}
	slices.Sort(all)
	return all
}

func equal(a, b Member) bool {
	ends := slices.Equal(a.Endpoints, b.Endpoints)
	a.Endpoints, b.Endpoints = nil, nil
	return ends && a.UUID == b.UUID && a.Host == b.Host && a.Key == b.Key && a.Address == b.Address && a.Boot == b.Boot &&
		a.Version == b.Version && a.Registered == b.Registered && a.Serial == b.Serial
}

// kept is the book on disk.
type kept struct {
	Self       Member      `json:"self"`
	Members    []Member    `json:"members"`
	Tombstones []Tombstone `json:"tombstones"`
}

// load reads what was known before. What is not there is an empty book.
func (b *book) load(dir string, log *slog.Logger) error {
	name := filepath.Join(dir, StateFile)
	raw, err := files.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("overlay: read the members: %w", err)
	}
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil {
		// The others tell all of it again, and until then nobody is removed anywhere.
		log.Error("the record of the members is damaged and put aside; they are learnt again", "file", name, "err", err)
		return os.Rename(name, name+".damaged")
	}
	if k.Self.UUID == b.self.UUID && k.Self.Key == b.self.Key {
		b.self.Serial = k.Self.Serial + 1
		b.self.Registered = max(b.self.Registered, k.Self.Registered)
	}
	b.merge(k.Members, k.Tombstones)
	return nil
}

func (b *book) save(dir string) error {
	var k kept
	k.Self, k.Members, k.Tombstones = b.known()
	raw, err := json.Marshal(k)
	if err == nil {
		err = write(dir, StateFile, raw)
	}
	if err != nil {
		return fmt.Errorf("overlay: keep the members: %w", err)
	}
	return nil
}
