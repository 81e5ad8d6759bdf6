package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// Pace is how often the service does what it repeats. Zero values are the defaults.
type Pace struct {
	// Look is how often members that are missing are looked for: 30 s.
	Look time.Duration
	// Silence is how long after its last handshake a peer counts as silent: 180 s,
	// after which WireGuard itself does not use the keys any more.
	Silence time.Duration
	// Next is how long one endpoint of a silent peer is tried: 5 s, WireGuard's own
	// time for a handshake.
	Next time.Duration
}

func (p Pace) orDefault() Pace {
	return Pace{cmp.Or(p.Look, 30*time.Second), cmp.Or(p.Silence, 180*time.Second), cmp.Or(p.Next, 5*time.Second)}
}

// Mode is whose network it is.
const (
	ModeOverlay = "overlay" // our own
	ModeDirect  = "direct"  // one that was brought along: no device
)

// Config is what a service is made of.
type Config struct {
	// Dir is the state folder.
	Dir  string
	Root Root
	Key  PrivateKey
	// Address is the node's own; with ModeDirect, its Address is that on the interface,
	// and its Range is not valid.
	Address Address
	Mode    string
	// Port is the one port, UDP and TCP, of all members; 0 is Port.
	Port int
	// UUID, Host, Version and Registered are what the node tells of itself, and Boot
	// names this boot of the kernel.
	UUID       uuid.UUID
	Host       string
	Version    string
	Boot       string
	Registered uint64
	// Peers are hosts and IPv4 addresses that the document names.
	Peers []string
	// Advertise are endpoints that the document adds to those that are found.
	Advertise []netip.AddrPort
	Log       *slog.Logger
	Pace      Pace
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Service is this node's part of the network.
type Service struct {
	Config
	book    *book
	device  *Device // nil with ModeDirect, and before Run
	members *membership
	greeter *greeter
	look    chan struct{} // looks for members now
	saying  chan struct{} // places for hellos under way

	// syncing is held while the device is given its peers.
	syncing sync.Mutex

	// mu is held for moments, and no other lock is taken under it.
	mu sync.Mutex
	// observed is where members were last seen by hello, and seenAt where they saw us.
	observed map[Key]sighting
	seenAt   []netip.Addr
	greeted  map[uuid.UUID]time.Time
	// named are the peers of the document that answered.
	named     map[string]bool
	refused   map[string]*Refusal
	refusedAt map[string]time.Time
	// silent is why the last hello to a peer of the document had no answer.
	silent map[string]string
	under  map[string]bool // hellos under way
	// boots is the boot that the device's memory of a peer belongs to.
	boots map[Key]string
	local []netip.AddrPort
	// movedAt is when the last of this machine's own addresses changed.
	movedAt time.Time
}

// sighting is where a member was, until it tells something else.
type sighting struct {
	at     netip.AddrPort
	serial uint64
}

// New prepares a service from what is on disk. Nothing runs and nothing is written.
func New(c Config) (*Service, error) {
	c.Pace = c.Pace.orDefault()
	c.Port = cmp.Or(c.Port, Port)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Mode == ModeDirect {
		c.Address.Range = netip.Prefix{}
	}
	s := &Service{
		Config: c, look: make(chan struct{}, 1), saying: make(chan struct{}, 8),
		observed: map[Key]sighting{}, greeted: map[uuid.UUID]time.Time{}, named: map[string]bool{}, refused: map[string]*Refusal{}, refusedAt: map[string]time.Time{}, silent: map[string]string{}, under: map[string]bool{}, boots: map[Key]string{},
	}
	self := Member{
		UUID: c.UUID, Host: c.Host, Key: c.Key.Public(), Address: c.Address.Address, Boot: c.Boot,
		Version: c.Version, Registered: c.Registered,
	}
	s.book = newBook(Terms{c.Mode, c.Address.Range}, self)
	s.book.now = c.Now
	if err := self.sane(c.Address.Range); err != nil {
		return nil, fmt.Errorf("overlay: what this node would tell cannot be: %w", err)
	}
	if err := s.book.load(c.Dir, c.Log); err != nil {
		return nil, err
	}
	s.greeter = &greeter{root: c.Root, key: c.Key, answer: s.answer, deadline: helloDeadline}
	return s, nil
}

// Run opens the device, the hello and the membership, and keeps them going until ctx
// ends. That nobody answers is no error.
func (s *Service) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.Mode != ModeDirect {
		d, err := OpenDevice(ctx, DeviceConfig{Root: s.Root, Key: s.Key, Address: s.Address, Port: s.Port, Log: s.Log})
		if err != nil {
			return err
		}
		defer d.Close()
		s.mu.Lock()
		s.device = d
		s.mu.Unlock()
	}
	s.refresh()
	s.sync()

	var listen net.ListenConfig
	at := net.JoinHostPort("", strconv.Itoa(s.Port))
	if s.Mode == ModeDirect {
		at = net.JoinHostPort(s.Address.Address.String(), strconv.Itoa(s.Port))
	}
	ln, err := listen.Listen(ctx, "tcp", at)
	if err != nil {
		return fmt.Errorf("overlay: listen for hellos: %w", err)
	}
	defer ln.Close()
	members, err := openMembership(s.book, s.Root, s.Log)
	if err != nil {
		return err
	}
	defer members.close()
	s.mu.Lock()
	s.members = members
	s.mu.Unlock()
	if err := watchAddresses(ctx, s.moved); err != nil {
		return err
	}

	var all errgroup.Group
	all.Go(func() error { defer cancel(); return s.greeter.serve(ctx, ln) })
	all.Go(func() error { defer cancel(); return s.loop(ctx) })
	return all.Wait()
}

// loop does what follows from changes and from the clock.
func (s *Service) loop(ctx context.Context) error {
	look, next := time.NewTicker(s.Pace.Look), time.NewTicker(s.Pace.Next)
	defer look.Stop()
	defer next.Stop()
	var ended <-chan struct{}
	if s.device != nil {
		ended = s.device.Done()
	}
	s.search(ctx, true)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return fmt.Errorf("overlay: the interface %s is gone", Interface)
		case <-s.book.changed:
			s.sync()
			if err := s.book.save(s.Dir); err != nil {
				s.Log.Error("what the mesh looks like is not kept, and is learnt again after a restart", "err", err)
			}
		case <-next.C:
			if s.device != nil {
				s.device.TryNext(s.Pace.Silence, s.Now())
			}
		case <-s.look:
			s.search(ctx, true)
		case <-look.C:
			s.search(ctx, false)
		}
	}
}

// sync gives the device the peers that the book has.
func (s *Service) sync() {
	if s.device == nil {
		return
	}
	s.syncing.Lock()
	defer s.syncing.Unlock()
	_, members, _ := s.book.known()
	wanted := map[Key]bool{}
	for _, m := range members {
		wanted[m.Key] = true
	}
	for _, key := range s.device.Peers() {
		if !wanted[key] {
			s.device.Remove(key)
		}
	}
	for _, m := range members {
		p := Peer{m.Key, m.Address, s.ends(m)}
		s.mu.Lock()
		if _, ok := s.boots[m.Key]; !ok {
			s.boots[m.Key] = m.Boot
		}
		s.mu.Unlock()
		if err := s.device.Set(p); err != nil {
			s.Log.Error("a member is not reached", "member", m.String(), "err", err)
		}
	}
}

// refresh looks where this node is, and says whether that is news to the others.
func (s *Service) refresh() bool {
	var ends []netip.AddrPort
	add := func(more ...netip.AddrPort) {
		for _, e := range more {
			if len(ends) < maxEndpoints && !slices.Contains(ends, e) && reachable(e, s.Address.Range) {
				ends = append(ends, e)
			}
		}
	}
	if s.Mode == ModeDirect {
		add(netip.AddrPortFrom(s.Address.Address, uint16(s.Port)))
	} else {
		local := ownEndpoints(uint16(s.Port), s.Address.Range)
		s.mu.Lock()
		if !slices.Equal(local, s.local) {
			s.local, s.seenAt = local, nil // what was seen from outside was elsewhere
		}
		seenAt := s.seenAt
		s.mu.Unlock()
		add(s.Advertise...)
		add(local...)
		for _, a := range seenAt {
			add(netip.AddrPortFrom(a, uint16(s.Port)))
		}
	}
	return s.book.tell(func(m *Member) { m.Endpoints = ends })
}

// moved tells all others where this node is now, in every way that may work.
func (s *Service) moved() {
	if s.device != nil {
		s.device.SendKeepalives()
	}
	if !s.refresh() {
		return
	}
	s.mu.Lock()
	s.movedAt = s.Now()
	s.mu.Unlock()
	s.members.update()
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// answer is the answerer's side of a hello: first what speaks against the initiator,
// then what is changed.
func (s *Service) answer(from netip.AddrPort, r request) answer {
	self, _, _ := s.book.known()
	if refused := s.book.refusal(r.Member, r.Terms); refused != nil {
		if refused.Why != Itself {
			s.Log.Debug("hello refused", "from", from, "reason", refused.Reason)
		}
		if refused.Why == UUIDTaken || refused.Why == KeyTaken {
			s.book.notice(refused) // a newcomer draws another address by itself; a copy stays one
		}
		return answer{Host: self.Host, Refusal: refused}
	}
	if refused := s.book.meet(r.Member); refused != nil {
		return answer{Host: self.Host, Refusal: refused}
	}
	s.heard(r.Member, from.Addr(), false)
	s.book.merge(r.Members, r.Tombstones)
	return s.book.reply(from.Addr())
}

// heard is what follows from a hello with a member that proved its key. answered: it
// was reached at that address, and did not come from there.
func (s *Service) heard(m Member, at netip.Addr, answered bool) {
	e := netip.AddrPortFrom(at, uint16(s.Port))
	s.mu.Lock()
	s.greeted[m.UUID] = s.Now()
	boot, before := s.boots[m.Key]
	s.boots[m.Key] = m.Boot
	if reachable(e, s.Address.Range) {
		s.observed[m.Key] = sighting{e, m.Serial}
	}
	s.mu.Unlock()
	if s.device == nil || !reachable(e, s.Address.Range) {
		return
	}
	state, peer := s.device.States()[m.Key]
	var err error
	switch {
	case peer && before && boot != m.Boot:
		err = s.device.Renew(m.Key, e)
	case peer && (answered || s.Now().Sub(state.Handshake) > s.Pace.Silence):
		err = s.device.Direct(m.Key, e)
	default:
		s.sync()
	}
	if err != nil {
		s.Log.Error("a member is not reached", "member", m.String(), "err", err)
	}
}

// search joins members that memberlist lost, and says hello to peers of the document
// that never answered and to members that are silent; all: to members that are not,
// too, as it does after this node moved, for as long as they would not seem silent. It
// waits for none of them.
func (s *Service) search(ctx context.Context, all bool) {
	_, members, _ := s.book.known()
	s.mu.Lock()
	all = all || s.Now().Sub(s.movedAt) < s.Pace.Silence
	s.mu.Unlock()
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	alive := s.members.alive()
	var lost []netip.Addr
	for _, m := range members {
		if !alive[m.UUID.String()] && len(lost) < 3 {
			lost = append(lost, m.Address)
		}
	}
	for _, a := range lost {
		s.once("join "+a.String(), func() { s.members.join(a) })
	}

	for _, peer := range s.Peers {
		s.mu.Lock()
		answered := s.named[peer]
		s.mu.Unlock()
		if !answered {
			s.once("hello "+peer, func() { s.greet(ctx, peer, []string{net.JoinHostPort(peer, strconv.Itoa(s.Port))}) })
		}
	}
	var states map[Key]PeerState
	if s.device != nil {
		states = s.device.States()
	}
	asked := 0
	for _, m := range members {
		silent := !alive[m.UUID.String()] || s.device != nil && s.Now().Sub(states[m.Key].Handshake) > s.Pace.Silence
		// As many as are asked within one look.
		if !silent && !all || asked >= 16 {
			continue
		}
		asked++
		s.once("hello "+m.UUID.String(), func() { s.greet(ctx, "", s.doors(m)) })
	}
}

// ends is where a member may be, where it was seen last first.
func (s *Service) ends(m Member) []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, ok := s.observed[m.Key]; ok && o.serial == m.Serial {
		return append([]netip.AddrPort{o.at}, without(m.Endpoints, o.at)...)
	}
	return m.Endpoints
}

// doors is where a member may answer a hello.
func (s *Service) doors(m Member) []string {
	if s.Mode == ModeDirect {
		return []string{netip.AddrPortFrom(m.Address, uint16(s.Port)).String()}
	}
	var out []string
	for _, e := range s.ends(m) {
		out = append(out, e.String())
	}
	return out
}

// once runs f in the background, unless it runs already.
func (s *Service) once(name string, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.under[name] {
		return
	}
	s.under[name] = true
	go func() {
		s.saying <- struct{}{}
		f()
		<-s.saying
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.under, name)
	}()
}

// greet says hello at one door after the other until one is opened.
func (s *Service) greet(ctx context.Context, named string, doors []string) {
	for _, door := range doors {
		if ctx.Err() != nil {
			return
		}
		self, members, tombstones := s.book.known()
		a, at, err := say(ctx, s.Root, s.Key, door, request{Member: self, Terms: s.book.terms, Members: members, Tombstones: tombstones[:min(len(tombstones), helloTombstones)]})
		if err != nil {
			if refused := (*Refusal)(nil); errors.As(err, &refused) {
				s.told(door, named, refused)
			} else if named != "" && ctx.Err() == nil {
				s.mu.Lock()
				s.silent[named] = err.Error()
				s.mu.Unlock()
			}
			s.Log.Debug("hello", "to", door, "err", err)
			continue
		}
		// The mesh that it belongs to may be another one.
		if refused := s.book.refusal(a.Member, a.Terms); refused != nil {
			s.book.notice(refused)
			continue
		}
		s.told(door, named, nil)
		if s.book.meet(a.Member) != nil {
			continue
		}
		s.heard(a.Member, at.Addr(), true)
		s.book.merge(append(a.Members, a.Member), a.Tombstones)
		s.sync()
		s.observe(a.You)
		if err := s.members.join(a.Member.Address); err != nil {
			s.Log.Debug("join", "member", a.Member.String(), "err", err)
		}
		return
	}
}

// told keeps what a door answered: a refusal until it lets this node in.
func (s *Service) told(door, named string, refused *Refusal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if named != "" {
		delete(s.silent, named)
		if refused == nil || refused.Why == Itself {
			s.named[named] = true
		}
	}
	if refused == nil || refused.Why == Itself {
		delete(s.refused, door)
		delete(s.refusedAt, door)
		return
	}
	s.forgetRefusals()
	if len(s.refused) < maxAlarms {
		if _, before := s.refused[door]; !before {
			s.Log.Warn("this node is not let in", "by", door, "reason", refused.Reason)
		}
		s.refused[door], s.refusedAt[door] = refused, s.Now()
	}
}

// forgetRefusals drops those of doors that were not asked any more: a member was there
// before its address changed.
func (s *Service) forgetRefusals() {
	for door, at := range s.refusedAt {
		if s.Now().Sub(at) > alarmTime {
			delete(s.refused, door)
			delete(s.refusedAt, door)
		}
	}
}

// observe adds where a member sees this node to what is told of it.
func (s *Service) observe(a netip.Addr) {
	s.mu.Lock()
	known := slices.Contains(s.seenAt, a)
	if !known {
		s.seenAt = append([]netip.Addr{a}, s.seenAt[:min(len(s.seenAt), 1)]...)
	}
	s.mu.Unlock()
	if !known && s.refresh() {
		s.members.update()
	}
}

// Bury ends the membership of a node, or of this one: every member removes it, also
// those that are away now, and lets it in again only with a higher registration.
func (s *Service) Bury(id uuid.UUID) error {
	m, t, err := s.book.bury(id, s.Now())
	if _, members := s.parts(); err == nil && members != nil {
		members.spread(t)
		// Nobody gossips with it any more.
		s.once("tell "+id.String(), func() { s.greet(context.Background(), "", s.doors(m)) })
	}
	return err
}

// Status is what there is to see.
type Status struct {
	Self  Member       `json:"self"`
	Peers []PeerStatus `json:"peers"`
	// Asks are the peers that the document names.
	Asks []string `json:"asks"`
	// Departed: this node's own registration is over; DepartedAt is when, as was told.
	Departed   bool      `json:"departed,omitempty"`
	DepartedAt time.Time `json:"departed_at,omitzero"`
	// Refused are who does not let this node in, and why.
	Refused map[string]*Refusal `json:"refused,omitempty"`
	// Silent are the peers of the document that have not answered yet, and why not.
	Silent map[string]string `json:"silent,omitempty"`
	// Departures are the nodes whose registration is over, and that are no members.
	Departures []uuid.UUID `json:"departures,omitempty"`
	// Alarms are conflicts that a person must end, of the last ten minutes.
	Alarms []string `json:"alarms,omitempty"`
	// Strangers counts the connections that got no answer.
	Strangers uint64 `json:"strangers"`
}

// PeerStatus is how this node gets on with a member.
type PeerStatus struct {
	Member
	// Handshake is how long ago the last one was; negative: never.
	Handshake time.Duration `json:"handshake"`
	// Endpoint is where packets to it go.
	Endpoint netip.AddrPort `json:"endpoint"`
	// Greeted is how long ago the last hello was; negative: never since the start. One
	// that answers hellos and never shakes hands has UDP blocked.
	Greeted time.Duration `json:"greeted"`
	// Gossip: memberlist takes it for alive. It is no sign of health.
	Gossip bool `json:"gossip"`
	// Reached: packets pass to it, as far as this end can tell. With ModeDirect there are
	// no handshakes, and hellos and gossip are all that tells it.
	Reached bool `json:"reached"`
}

// parts are what Run opened; nil before.
func (s *Service) parts() (*Device, *membership) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.device, s.members
}

// Status reads it.
func (s *Service) Status() Status {
	var st Status
	self, members, tombstones := s.book.known()
	st.Self = self
	st.Asks = s.Peers
	st.DepartedAt, st.Departed = s.book.departed()
	st.Strangers = s.greeter.silent.Load()
	st.Alarms = s.book.conflicts()
	device, membership := s.parts()
	var states map[Key]PeerState
	if device != nil {
		states = device.States()
	}
	alive := map[string]bool{}
	if membership != nil {
		alive = membership.alive()
	}
	since := func(t time.Time) time.Duration {
		if t.IsZero() {
			return -1
		}
		return max(0, s.Now().Sub(t))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range members {
		state := states[m.Key]
		p := PeerStatus{Member: m, Handshake: since(state.Handshake), Endpoint: state.Endpoint, Greeted: since(s.greeted[m.UUID]), Gossip: alive[m.UUID.String()]}
		recent := func(age time.Duration) bool { return age >= 0 && age < s.Pace.Silence }
		p.Reached = recent(p.Handshake) || s.Mode == ModeDirect && (p.Gossip || recent(p.Greeted))
		st.Peers = append(st.Peers, p)
	}
	for _, t := range tombstones {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.UUID == t.UUID }) {
			st.Departures = append(st.Departures, t.UUID)
		}
	}
	s.forgetRefusals()
	st.Refused, st.Silent = maps.Clone(s.refused), maps.Clone(s.silent)
	return st
}
