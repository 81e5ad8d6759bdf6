package overlay

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flynn/noise"
	"golang.org/x/sys/unix"
)

// The hello is Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s with a key from the root, and
// in it one request and one answer. Each message has its length before it, 2 bytes.
//
//	initiator                     answerer
//	e, psk, no payload      ──▶   silent, unless it can open this
//	                        ◀──   e, ee; the answerer's public key
//	request                 ──▶   live: only who has the key of e can write this
//	                        ◀──   answer
//
// Request and answer prove that their sender has the private key that goes with the
// public one that it tells.
const (
	helloPrologue = "xivo-mesh hello/1"
	firstLen      = 32 + 16 // an ephemeral key, and the tag of the empty payload
	helloSlots    = 16
	helloASource  = 2
	helloDeadline = 5 * time.Second
	helloBytes    = 1 << 20
	// So many tombstones fit beside the members. The membership brings the rest.
	helloTombstones = 2000
)

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

// request is what the initiator says.
type request struct {
	Member     Member      `json:"member"`
	Terms      Terms       `json:"terms"`
	Proof      []byte      `json:"proof"`
	Members    []Member    `json:"members,omitempty"`
	Tombstones []Tombstone `json:"tombstones,omitempty"`
}

// answer is what it gets. With a refusal, there is nothing else in it but the
// answerer's name.
type answer struct {
	Host       string      `json:"host"`
	Refusal    *Refusal    `json:"refusal,omitempty"`
	Member     Member      `json:"member,omitzero"`
	Terms      Terms       `json:"terms,omitzero"`
	Proof      []byte      `json:"proof,omitempty"`
	Members    []Member    `json:"members,omitempty"`
	Tombstones []Tombstone `json:"tombstones,omitempty"`
	// You is the address that the initiator was seen at.
	You netip.Addr `json:"you,omitzero"`
}

// channel is an established hello.
type channel struct {
	conn    net.Conn
	out, in *noise.CipherState
	binding []byte
}

func handshake(root Root, initiator bool) (*noise.HandshakeState, error) {
	psk := root.helloKey()
	return noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Random: rand.Reader, Pattern: noise.HandshakeNN, Initiator: initiator,
		Prologue: []byte(helloPrologue), PresharedKey: psk[:], PresharedKeyPlacement: 0,
	})
}

// readFrame reads a message of at most that many bytes.
func readFrame(r io.Reader, most int) ([]byte, error) {
	var n [2]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint16(n[:]))
	if size > most {
		return nil, fmt.Errorf("a message of %d bytes, where %d may come", size, most)
	}
	frame := make([]byte, size)
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func writeFrame(w io.Writer, frame []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(frame))), frame...))
	return err
}

// chunk is how much of a text goes into one message, with the byte that says
// whether there is more.
const chunk = noise.MaxMsgLen - 16 - 1

// send writes one JSON text.
func (c *channel) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > helloBytes {
		return fmt.Errorf("it would be %d bytes long", len(text))
	}
	for more := true; more; {
		part := text[:min(len(text), chunk)]
		text = text[len(part):]
		more = len(text) > 0
		flag := byte(0)
		if more {
			flag = 1
		}
		frame, err := c.out.Encrypt(nil, nil, append([]byte{flag}, part...))
		if err != nil {
			return err
		}
		if err := writeFrame(c.conn, frame); err != nil {
			return err
		}
	}
	return nil
}

// receive reads one JSON text.
func (c *channel) receive(v any) error {
	var text []byte
	for more := true; more; {
		frame, err := readFrame(c.conn, noise.MaxMsgLen)
		if err != nil {
			return err
		}
		part, err := c.in.Decrypt(nil, nil, frame)
		if err != nil {
			return err
		}
		if len(part) == 0 || len(text)+len(part) > helloBytes+1 {
			return fmt.Errorf("it is empty, or longer than %d bytes", helloBytes)
		}
		more = part[0] == 1
		text = append(text, part[1:]...)
	}
	return json.Unmarshal(text, v)
}

// proof is what only a holder of one of the two private keys can tell, in this hello,
// in this role.
func (c *channel) proof(own PrivateKey, other Key, role string) ([]byte, error) {
	shared, err := own.shared(other)
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, shared)
	mac.Write([]byte("xivo-mesh hello " + role))
	mac.Write(c.binding)
	return mac.Sum(nil), nil
}

// greeter answers hellos.
type greeter struct {
	root Root
	key  PrivateKey
	// answer is called for a live initiator that proved its key, one call at a time
	// for each connection. It must check what it is told.
	answer func(from netip.AddrPort, r request) answer
	// deadline is for all of a hello.
	deadline time.Duration

	mu      sync.Mutex
	slots   int
	sources map[netip.Addr]int
	// silent counts the connections that got no byte.
	silent atomic.Uint64
}

// source is whom the places of a hello are counted for: an address, or the network
// of an IPv6 one.
func source(a netip.Addr) netip.Addr {
	if a = a.Unmap().WithZone(""); a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// enter takes a place, or says that there is none.
func (g *greeter) enter(from netip.Addr) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.slots >= helloSlots || g.sources[from] >= helloASource {
		return false
	}
	if g.sources == nil {
		g.sources = map[netip.Addr]int{}
	}
	g.slots++
	g.sources[from]++
	return true
}

func (g *greeter) leave(from netip.Addr) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.slots--
	if g.sources[from]--; g.sources[from] == 0 {
		delete(g.sources, from)
	}
}

// serve answers until ctx ends. Who has no place, no secret or no time gets no byte.
func (g *greeter) serve(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			var temporary net.Error
			if errors.As(err, &temporary) && temporary.Timeout() || isFull(err) {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("overlay: accept hellos: %w", err)
		}
		from := addrPort(conn.RemoteAddr())
		if place := source(from.Addr()); g.enter(place) {
			go func() {
				defer g.leave(place)
				defer conn.Close()
				g.greet(conn, from)
			}()
			continue
		}
		g.silent.Add(1)
		conn.Close()
	}
}

// greet is one hello.
func (g *greeter) greet(conn net.Conn, from netip.AddrPort) {
	conn.SetDeadline(time.Now().Add(g.deadline))
	hs, err := handshake(g.root, false)
	if err != nil {
		return
	}
	first, err := readFrame(conn, firstLen)
	if err == nil {
		_, _, _, err = hs.ReadMessage(nil, first)
	}
	if err != nil {
		g.silent.Add(1)
		return
	}
	public := g.key.Public()
	second, in, out, err := hs.WriteMessage(nil, public[:])
	if err != nil || writeFrame(conn, second) != nil {
		return
	}
	c := &channel{conn: conn, in: in, out: out, binding: hs.ChannelBinding()}
	var r request
	if c.receive(&r) != nil {
		return
	}
	want, err := c.proof(g.key, r.Member.Key, "initiator")
	if err != nil || !hmac.Equal(want, r.Proof) {
		c.send(answer{Refusal: &Refusal{Why: Invalid, Reason: "the key that it tells is not its own"}})
		return
	}
	a := g.answer(from, r)
	if a.Refusal == nil {
		if a.Proof, err = c.proof(g.key, r.Member.Key, "answerer"); err != nil {
			return
		}
	}
	c.send(a)
}

// ErrSilent is that nothing was answered to the secret.
var ErrSilent = errors.New("it closed the connection without a word: it has another secret, or too many ask it; compare `secret` in the documents")

// say says hello at an address. A refusal is a *Refusal. The answer is proved to come
// from the key that it tells, and not otherwise checked.
func say(ctx context.Context, root Root, key PrivateKey, to string, r request) (a answer, at netip.AddrPort, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("overlay: hello to %s: %w", to, err)
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, helloDeadline)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", to)
	if err != nil {
		return a, at, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	at = addrPort(conn.RemoteAddr())

	hs, err := handshake(root, true)
	if err != nil {
		return a, at, err
	}
	first, _, _, err := hs.WriteMessage(nil, nil)
	if err != nil {
		return a, at, err
	}
	if err := writeFrame(conn, first); err != nil {
		return a, at, err
	}
	second, err := readFrame(conn, noise.MaxMsgLen)
	if err != nil {
		if ctx.Err() == nil {
			err = ErrSilent
		}
		return a, at, err
	}
	theirs, out, in, err := hs.ReadMessage(nil, second)
	if err != nil || len(theirs) != len(Key{}) {
		return a, at, errors.New("what it answers is no hello of this mesh: it has another secret, or is something else")
	}
	c := &channel{conn: conn, in: in, out: out, binding: hs.ChannelBinding()}
	if r.Proof, err = c.proof(key, Key(theirs), "initiator"); err != nil {
		return a, at, err
	}
	if err := c.send(r); err != nil {
		return a, at, err
	}
	if err := c.receive(&a); err != nil {
		return a, at, fmt.Errorf("read its answer: %w", err)
	}
	if a.Refusal != nil {
		return a, at, a.Refusal
	}
	want, err := c.proof(key, Key(theirs), "answerer")
	if err != nil || !hmac.Equal(want, a.Proof) || a.Member.Key != Key(theirs) {
		return answer{}, at, errors.New("the key that it tells is not its own")
	}
	return a, at, nil
}

// reply is what this node answers to a member that it let in.
func (b *book) reply(to netip.Addr) answer {
	self, members, tombstones := b.known()
	return answer{Host: self.Host, Member: self, Terms: b.terms, Members: members, Tombstones: tombstones[:min(len(tombstones), helloTombstones)], You: to}
}

// Introduction is what become says hello with, before anything of the overlay runs.
type Introduction struct {
	Root Root
	Key  PrivateKey
	// Member is what the node tells of itself; its address is Address, and its endpoints
	// are those of this machine where it has none.
	Member  Member
	Address Address
	Terms   Terms
	// Draw: the node was never a member, and takes another address where its own is
	// taken.
	Draw bool
	// Port is where hellos are answered; 0 is Port.
	Port int
}

// Welcome is what the mesh answered.
type Welcome struct {
	// Address is the node's own from now on, to be kept.
	Address Address
	// From is who answered.
	From    Member
	Members []Member
}

// Hello says hello to peers, hosts or IPv4 addresses, until one lets this node in. An
// address that is taken is drawn again. A refusal for another reason ends it, and is a
// *Refusal; when nobody answers, the error says why of each. It lasts as long as ctx,
// and at most 5 s a peer and a draw.
func (i Introduction) Hello(ctx context.Context, peers []string) (Welcome, error) {
	if i.Port == 0 {
		i.Port = Port
	}
	address := i.Address
	if i.Member.Endpoints == nil && i.Terms.Mode != ModeDirect {
		i.Member.Endpoints = ownEndpoints(uint16(i.Port), i.Terms.Range)
	}
	var errs []error
	for _, peer := range peers {
		for redraws := 0; ; redraws++ {
			i.Member.Address = address.Address
			a, _, err := say(ctx, i.Root, i.Key, net.JoinHostPort(peer, strconv.Itoa(i.Port)), request{Member: i.Member, Terms: i.Terms})
			if err == nil {
				return Welcome{Address: address, From: a.Member, Members: a.Members}, nil
			}
			var r *Refusal
			if !errors.As(err, &r) {
				errs = append(errs, err)
				break
			}
			if r.Why == Itself {
				break
			}
			if r.Why != AddressTaken || !i.Draw || redraws > 2 {
				return Welcome{}, err
			}
			if address, err = Draw(i.Member.UUID, i.Terms.Range, append(slices.Clone(r.Taken), address.Address)...); err != nil {
				return Welcome{}, err
			}
		}
	}
	return Welcome{Address: address}, errors.Join(errs...)
}

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		p := t.AddrPort()
		return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port())
	}
	return netip.AddrPort{}
}

// isFull says whether the process or the machine has no file descriptor left, which
// passes.
func isFull(err error) bool {
	return errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.ECONNABORTED)
}
