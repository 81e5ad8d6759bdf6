package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var (
	testRoot = Root{1, 2, 3}
	terms    = Terms{ModeOverlay, DefaultRange}
)

// node is what a node of that name tells of itself, and its key.
func node(t *testing.T, host string) (Member, PrivateKey) {
	t.Helper()
	key, id := NewKey(), uuid.New()
	a, err := Draw(id, DefaultRange)
	check(t, err)
	return Member{UUID: id, Host: host, Key: key.Public(), Address: a.Address, Boot: "b", Version: "16.03", Registered: 1,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:9484")}}, key
}

// answering is a service that answers hellos on loopback, and has no device.
func answering(t *testing.T) (s *Service, at string) {
	t.Helper()
	m, key := node(t, "answerer")
	s, err := New(Config{
		Dir: t.TempDir(), Root: testRoot, Key: key, Address: Address{Range: DefaultRange, Address: m.Address, UUID: m.UUID}, Mode: ModeOverlay,
		UUID: m.UUID, Host: m.Host, Version: m.Version, Boot: "b", Registered: 1, Log: slog.New(slog.DiscardHandler),
	})
	check(t, err)
	return s, serving(t, s.greeter)
}

func serving(t *testing.T, g *greeter) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { g.serve(ctx, ln) })
	t.Cleanup(func() { cancel(); done.Wait() })
	return ln.Addr().String()
}

func (s *Service) knows(m Member) bool {
	_, members, _ := s.book.known()
	return slices.ContainsFunc(members, func(o Member) bool { return o.UUID == m.UUID && o.Key == m.Key })
}

func TestAHelloLetsANewcomerIn(t *testing.T) {
	s, at := answering(t)
	first, _ := node(t, "first")
	check(t, errOf(s.book.meet(first)))
	m, key := node(t, "newcomer")
	a, _, err := say(t.Context(), testRoot, key, at, request{Member: m, Terms: terms})
	check(t, err)
	if a.Member.Host != "answerer" || a.You != netip.MustParseAddr("127.0.0.1") || !slices.ContainsFunc(a.Members, func(o Member) bool { return equal(o, first) }) {
		t.Errorf("it was answered %+v", a)
	}
	if !s.knows(m) {
		t.Error("the answerer does not know it")
	}
}

func errOf(r *Refusal) error {
	if r == nil {
		return nil
	}
	return r
}

func TestWhoIsRefusedIsToldWhyAndNothingChanges(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m, known, self *Member, terms *Terms)
		why    Why
		says   []string
	}{
		"the UUID of a member":     {func(m, known, _ *Member, _ *Terms) { m.UUID = known.UUID }, UUIDTaken, []string{"newcomer", "known"}},
		"the UUID of the answerer": {func(m, _, self *Member, _ *Terms) { m.UUID = self.UUID }, UUIDTaken, []string{"newcomer", "answerer"}},
		"the address of a member":  {func(m, known, _ *Member, _ *Terms) { m.Address = known.Address }, AddressTaken, []string{"newcomer", "known"}},
		"the address of one that left": {func(m, _, _ *Member, _ *Terms) {
			m.Address = netip.MustParseAddr("100.88.9.9")
		}, AddressTaken, []string{"newcomer", "departed"}},
		"another version of XiVO":  {func(m, _, _ *Member, _ *Terms) { m.Version = "16.04" }, OtherVersion, []string{"16.03", "16.04"}},
		"another mode":             {func(_, _, _ *Member, terms *Terms) { terms.Mode = ModeDirect }, OtherNetwork, []string{"direct"}},
		"another range":            {func(_, _, _ *Member, terms *Terms) { terms.Range = netip.MustParsePrefix("100.88.0.0/17") }, OtherNetwork, []string{"/17"}},
		"an address out of range":  {func(m, _, _ *Member, _ *Terms) { m.Address = netip.MustParseAddr("10.0.0.1") }, Invalid, []string{"10.0.0.1"}},
		"an endpoint on loopback":  {func(m, _, _ *Member, _ *Terms) { m.Endpoints[0] = netip.MustParseAddrPort("127.0.0.1:9484") }, Invalid, []string{"127.0.0.1"}},
		"an endpoint of the cloud": {func(m, _, _ *Member, _ *Terms) { m.Endpoints[0] = netip.MustParseAddrPort("169.254.169.254:80") }, Invalid, []string{"169.254"}},
		"a long host name":         {func(m, _, _ *Member, _ *Terms) { m.Host = strings.Repeat("x", 65) }, Invalid, nil},
		"a host name that rings":   {func(m, _, _ *Member, _ *Terms) { m.Host = "a\ab" }, Invalid, nil},
		"an immense registration":  {func(m, _, _ *Member, _ *Terms) { m.Registered = 1 << 60 }, Invalid, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s, at := answering(t)
			known, _ := node(t, "known")
			check(t, errOf(s.book.meet(known)))
			s.book.merge(nil, []Tombstone{{UUID: uuid.New(), Host: "departed", Address: netip.MustParseAddr("100.88.9.9"), Registered: 3}})
			self, before, stones := s.book.known()
			m, key := node(t, "newcomer")
			third, _ := node(t, "told of")
			terms := terms
			c.change(&m, &known, &self, &terms)

			_, _, err := say(t.Context(), testRoot, key, at, request{Member: m, Terms: terms, Members: []Member{third}})
			var r *Refusal
			if !errors.As(err, &r) || r.Why != c.why {
				t.Fatalf("it was told %v", err)
			}
			for _, text := range c.says {
				if !strings.Contains(r.Reason, text) {
					t.Errorf("%q does not say %q", r.Reason, text)
				}
			}
			_, after, stonesAfter := s.book.known()
			if !slices.EqualFunc(before, after, equal) || len(stones) != len(stonesAfter) {
				t.Errorf("the answerer knew %v, and knows %v", before, after)
			}
			if (r.Why == AddressTaken) != slices.Contains(r.Taken, netip.MustParseAddr("100.88.9.9")) {
				t.Errorf("taken are %v", r.Taken)
			}
		})
	}
}

func TestAMemberIsNotRefusedForItsVersion(t *testing.T) {
	s, at := answering(t)
	m, key := node(t, "upgraded")
	check(t, errOf(s.book.meet(m)))
	m.Version, m.Serial = "16.04", 1
	_, _, err := say(t.Context(), testRoot, key, at, request{Member: m, Terms: terms})
	check(t, err)
	if _, members, _ := s.book.known(); members[0].Version != "16.04" {
		t.Errorf("it is known with %s", members[0].Version)
	}
}

func TestOnlyAHigherRegistrationComesBack(t *testing.T) {
	s, at := answering(t)
	m, key := node(t, "forgotten")
	check(t, errOf(s.book.meet(m)))
	check(t, s.Bury(m.UUID))
	_, _, err := say(t.Context(), testRoot, key, at, request{Member: m, Terms: terms})
	var r *Refusal
	if !errors.As(err, &r) || r.Why != Departed || r.Registered != 1 || s.knows(m) {
		t.Fatalf("it was told %v", err)
	}
	m.Registered = r.Registered + 1
	_, _, err = say(t.Context(), testRoot, key, at, request{Member: m, Terms: terms})
	check(t, err)
	if !s.knows(m) {
		t.Error("it is not known")
	}
	// Nor does what somebody else still has of it put it out again.
	_, _, stones := s.book.known()
	s.book.merge(nil, stones)
	if !s.knows(m) {
		t.Error("an old tombstone put it out")
	}
}

func TestAKeyMustBeTheInitiatorsOwn(t *testing.T) {
	s, at := answering(t)
	m, _ := node(t, "victim")
	check(t, errOf(s.book.meet(m)))
	other := NewKey()
	m.Boot, m.Serial = "of the impostor", 9
	_, _, err := say(t.Context(), testRoot, other, at, request{Member: m, Terms: terms})
	if err == nil {
		t.Error("it was let in with a key that is not its own")
	}
	if _, members, _ := s.book.known(); members[0].Boot != "b" {
		t.Errorf("the answerer believes %+v", members[0])
	}
}

func TestBecomeDrawsAgainWhereItsAddressIsTaken(t *testing.T) {
	s, at := answering(t)
	m, key := node(t, "newcomer")
	first, err := Draw(m.UUID, DefaultRange)
	check(t, err)
	known, _ := node(t, "known")
	known.Address = first.Address
	check(t, errOf(s.book.meet(known)))
	host, port, _ := net.SplitHostPort(at)
	n, _ := strconv.Atoi(port)
	i := Introduction{Root: testRoot, Key: key, Member: m, Address: first, Terms: terms, Port: n}

	_, err = i.Hello(t.Context(), []string{host})
	var r *Refusal
	if !errors.As(err, &r) || r.Why != AddressTaken {
		t.Errorf("a member that may not move was told %v", err)
	}
	i.Draw = true
	w, err := i.Hello(t.Context(), []string{host})
	check(t, err)
	second, err := Draw(m.UUID, DefaultRange, first.Address)
	check(t, err)
	if w.Address != second || w.From.Host != "answerer" {
		t.Errorf("it got %+v, not %+v", w, second)
	}
	if m.Address = second.Address; !s.knows(m) {
		t.Error("the answerer does not know it")
	}
}

// recorder copies what goes to the answerer.
func recorder(t *testing.T, to string) (at string, recorded func() []byte) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	t.Cleanup(func() { ln.Close() })
	done := make(chan []byte, 1)
	go func() {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		go func() { io.Copy(in, out); in.Close() }()
		var all strings.Builder
		io.Copy(io.MultiWriter(out, &all), in)
		out.Close()
		done <- []byte(all.String())
	}()
	return ln.Addr().String(), func() []byte { return <-done }
}

func TestAHelloThatIsPlayedAgainChangesNothing(t *testing.T) {
	s, at := answering(t)
	m, key := node(t, "member")
	proxy, recorded := recorder(t, at)
	_, _, err := say(t.Context(), testRoot, key, proxy, request{Member: m, Terms: terms})
	check(t, err)
	hello := recorded()
	check(t, s.Bury(m.UUID))
	s.book.mu.Lock()
	clear(s.book.tombstones) // all is as it was before the hello
	s.book.mu.Unlock()

	conn, err := net.Dial("tcp", at)
	check(t, err)
	defer conn.Close()
	conn.Write(hello)
	answered, _ := io.ReadAll(conn)
	if len(answered) != 2+32+16+32 {
		t.Errorf("it was answered %d bytes, not the second message alone", len(answered))
	}
	if s.knows(m) {
		t.Error("the answerer let in who only played a hello again")
	}
}

func TestWhoLacksTheSecretGetsNoByte(t *testing.T) {
	s, at := answering(t)
	m, key := node(t, "stranger")
	other, err := handshake(Root{9}, true)
	check(t, err)
	first, _, _, err := other.WriteMessage(nil, nil)
	check(t, err)
	ours, err := handshake(testRoot, true)
	check(t, err)
	payload, _, _, err := ours.WriteMessage(nil, []byte("early"))
	check(t, err)
	frame := func(b []byte) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(b)))) + string(b) }
	for name, text := range map[string]string{
		"another secret":        frame(first),
		"HTTP":                  "GET / HTTP/1.1\r\n\r\n",
		"zeros":                 strings.Repeat("\x00", 60_000),
		"noise":                 "\x00\x30" + strings.Repeat("x", 48),
		"a long message":        "\xff\xff" + strings.Repeat("x", 60_000),
		"a first with content":  frame(payload),
		"too short to be first": frame(first[:32]),
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.Dial("tcp", at)
			check(t, err)
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute)) // for hangs
			io.WriteString(conn, text)
			answered, err := io.ReadAll(conn)
			if len(answered) != 0 || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("it was answered %q, %v", answered, err)
			}
		})
	}
	if _, _, err := say(t.Context(), Root{9}, key, at, request{Member: m, Terms: terms}); !errors.Is(err, ErrSilent) {
		t.Errorf("a node with another secret is told %v", err)
	}
	if s.Status().Strangers < 7 {
		t.Errorf("%d strangers were counted", s.Status().Strangers)
	}
}

// closed says whether a connection was closed without a byte, now.
func closed(c net.Conn) bool {
	c.SetReadDeadline(time.Now().Add(time.Minute)) // for hangs
	n, err := c.Read(make([]byte, 1))
	var late net.Error
	return n == 0 && err != nil && !(errors.As(err, &late) && late.Timeout())
}

func TestPlacesAreFewAndGivenBack(t *testing.T) {
	g := &greeter{root: testRoot, key: NewKey(), deadline: time.Hour, answer: func(netip.AddrPort, request) answer { return answer{} }}
	at := serving(t, g)
	from := func(last int) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(last))}}
		c, err := d.Dial("tcp", at)
		check(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	used := func() int { g.mu.Lock(); defer g.mu.Unlock(); return g.slots }
	wait := func(n int) {
		t.Helper()
		for end := time.Now().Add(time.Minute); used() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d places are used, not %d", used(), n)
			}
		}
	}
	var all []net.Conn
	for i := range helloSlots / helloASource {
		for range helloASource {
			all = append(all, from(10+i))
		}
		wait(len(all))
		if i == 0 && !closed(from(10)) {
			t.Error("a source has more than its places")
		}
	}
	if !closed(from(99)) {
		t.Error("there are more places than there may be")
	}
	for _, c := range all[:3] {
		c.Close()
	}
	wait(helloSlots - 3)
	from(99)
	wait(helloSlots - 2)

	// The networks of IPv6 are one source each.
	if source(netip.MustParseAddr("2001:db8::1")) != source(netip.MustParseAddr("2001:db8::ffff:1")) ||
		source(netip.MustParseAddr("2001:db8::1")) == source(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Error("IPv6 sources are told apart by something else than their network")
	}
}

func TestAPlaceIsHadForALimitedTime(t *testing.T) {
	g := &greeter{root: testRoot, key: NewKey(), deadline: 50 * time.Millisecond, answer: func(netip.AddrPort, request) answer {
		t.Error("an unfinished hello was answered")
		return answer{}
	}}
	at := serving(t, g)
	idle, err := net.Dial("tcp", at)
	check(t, err)
	defer idle.Close()
	if !closed(idle) {
		t.Error("who says nothing gets a byte, or keeps its place")
	}
	// One that has the secret, and stops.
	half, err := net.Dial("tcp", at)
	check(t, err)
	defer half.Close()
	hs, err := handshake(testRoot, true)
	check(t, err)
	first, _, _, err := hs.WriteMessage(nil, nil)
	check(t, err)
	check(t, writeFrame(half, first))
	half.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.ReadAll(half); err != nil && errors.Is(err, context.DeadlineExceeded) {
		t.Error("who stops half way keeps its place")
	}
}

func TestARequestIsNoLongerThanAMegabyte(t *testing.T) {
	_, at := answering(t)
	conn, err := net.Dial("tcp", at)
	check(t, err)
	defer conn.Close()
	hs, err := handshake(testRoot, true)
	check(t, err)
	first, _, _, err := hs.WriteMessage(nil, nil)
	check(t, err)
	check(t, writeFrame(conn, first))
	second, err := readFrame(conn, 1000)
	check(t, err)
	_, out, _, err := hs.ReadMessage(nil, second)
	check(t, err)
	part := append([]byte{1}, []byte(strings.Repeat(" ", chunk))...)
	conn.SetDeadline(time.Now().Add(time.Minute))
	for sent := 0; sent < 8*helloBytes; sent += chunk {
		frame, err := out.Encrypt(nil, nil, part)
		check(t, err)
		if err := writeFrame(conn, frame); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				t.Fatal("it hangs")
			}
			return // it hung up
		}
	}
	t.Errorf("it read %d bytes", 8*helloBytes)
}
