package overlay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/memberlist"
)

// membership spreads the book among those who are there. That memberlist takes a node
// for dead removes nothing from it.
type membership struct {
	book  *book
	list  *memberlist.Memberlist
	queue *memberlist.TransmitLimitedQueue
}

// openMembership listens on this node's address, which the machine must have.
func openMembership(b *book, root Root, logger *slog.Logger) (*membership, error) {
	self, _, _ := b.known()
	m := &membership{book: b}
	m.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: 4, NumNodes: func() int { return 1 + len(m.alive()) }}
	key := root.membersKey()
	c := memberlist.DefaultWANConfig()
	c.Name = self.UUID.String()
	c.BindAddr, c.BindPort = self.Address.String(), MembersPort
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.SecretKey = key[:]
	c.PushPullInterval = 30 * time.Second
	c.TCPTimeout = 10 * time.Second
	c.UDPBufferSize = 1200
	c.Delegate, c.Events, c.Alive, c.Conflict = m, m, m, m
	c.Logger = log.New(lines{logger}, "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("overlay: listen for members on %s: %w", net.JoinHostPort(c.BindAddr, strconv.Itoa(c.BindPort)), err)
	}
	m.list = list
	return m, nil
}

// lines tells what memberlist logs to who debugs: a lost packet is an error to it.
type lines struct{ log *slog.Logger }

func (l lines) Write(p []byte) (int, error) {
	l.log.Debug(string(bytes.TrimSpace(p)))
	return len(p), nil
}

// join meets the members at those addresses, and through them all others.
func (m *membership) join(at ...netip.Addr) error {
	var names []string
	for _, a := range at {
		names = append(names, netip.AddrPortFrom(a, MembersPort).String())
	}
	_, err := m.list.Join(names)
	return err
}

// alive are the names of the others that memberlist takes for alive.
func (m *membership) alive() map[string]bool {
	out := map[string]bool{}
	if m.list == nil {
		return out
	}
	for _, n := range m.list.Members() {
		if n.Name != m.list.LocalNode().Name {
			out[n.Name] = true
		}
	}
	return out
}

// update tells what changed of this node.
func (m *membership) update() { m.list.UpdateNode(time.Second) }

// spread tells a tombstone at once.
func (m *membership) spread(ts ...Tombstone) {
	for _, t := range ts {
		if text, err := json.Marshal(t); err == nil {
			m.queue.QueueBroadcast(message{t.UUID.String(), text})
		}
	}
}

// message is a tombstone under way.
type message struct {
	name string
	text []byte
}

func (m message) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(message)
	return ok && o.name == m.name
}
func (m message) Message() []byte { return m.text }
func (m message) Finished()       {}

// NodeMeta is this node's record, with as many endpoints as there is room for.
func (m *membership) NodeMeta(limit int) []byte {
	self, _, _ := m.book.known()
	for {
		text, err := json.Marshal(self)
		switch {
		case err == nil && len(text) <= limit:
			return text
		case err != nil || len(self.Endpoints) == 0:
			return nil
		}
		self.Endpoints = self.Endpoints[:len(self.Endpoints)-1]
	}
}

// NotifyMsg takes in a tombstone, and passes a new one on.
func (m *membership) NotifyMsg(text []byte) {
	var t Tombstone
	if json.Unmarshal(text, &t) == nil {
		m.spread(m.book.merge(nil, []Tombstone{t})...)
	}
}

func (m *membership) GetBroadcasts(overhead, limit int) [][]byte {
	return m.queue.GetBroadcasts(overhead, limit)
}

// shared is what two members tell each other of those who cannot tell it themselves.
type shared struct {
	Members    []Member    `json:"members,omitempty"`
	Tombstones []Tombstone `json:"tombstones,omitempty"`
}

// LocalState is all to a member that joins; else the tombstones, and of members those
// who are not there: the others tell of themselves, and it grows with the mesh only
// while there is something to tell.
func (m *membership) LocalState(join bool) []byte {
	var s shared
	_, members, tombstones := m.book.known()
	s.Tombstones = tombstones
	alive := map[string]bool{}
	if !join {
		alive = m.alive()
	}
	for _, one := range members {
		if !alive[one.UUID.String()] {
			s.Members = append(s.Members, one)
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil
	}
	return text
}

func (m *membership) MergeRemoteState(text []byte, _ bool) {
	var s shared
	if json.Unmarshal(text, &s) == nil {
		m.book.merge(s.Members, s.Tombstones)
	}
}

// record reads what a node tells of itself.
func record(n *memberlist.Node) (Member, error) {
	var one Member
	if err := json.Unmarshal(n.Meta, &one); err != nil {
		return one, err
	}
	if a, _ := netip.AddrFromSlice(n.Addr); n.Name != one.UUID.String() || a.Unmap() != one.Address || n.Port != MembersPort {
		return one, errors.New("name and address are not those of its record")
	}
	return one, nil
}

// NotifyAlive keeps out of the membership who contradicts the book.
func (m *membership) NotifyAlive(n *memberlist.Node) error {
	one, err := record(n)
	if err != nil {
		return err
	}
	m.book.mu.Lock()
	defer m.book.mu.Unlock()
	if r := m.book.conflict(one); r != nil && r.Why != Itself {
		m.book.doubt(r)
		return r
	}
	return nil
}

func (m *membership) NotifyJoin(n *memberlist.Node) { m.NotifyUpdate(n) }

func (m *membership) NotifyUpdate(n *memberlist.Node) {
	if one, err := record(n); err == nil {
		m.book.merge([]Member{one}, nil)
	}
}

// NotifyLeave says nothing of why: it is the same for one that was switched off.
func (m *membership) NotifyLeave(*memberlist.Node) { m.book.touch() }

// NotifyConflict is the last sign of two nodes with one name: the hello and NotifyAlive
// refuse what the book knows.
func (m *membership) NotifyConflict(existing, other *memberlist.Node) {
	m.book.mu.Lock()
	defer m.book.mu.Unlock()
	m.book.alarm(fmt.Sprintf("two nodes have the UUID %s: one at %s, one at %s; one of them is a copy", existing.Name, existing.Addr, other.Addr))
}

func (m *membership) close() { m.list.Shutdown() }
