package overlay

import (
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func testBook(t *testing.T) *book {
	t.Helper()
	self, _ := node(t, "self")
	return newBook(terms, self)
}

func hosts(b *book) []string {
	_, members, _ := b.known()
	var out []string
	for _, m := range members {
		out = append(out, m.Host)
	}
	slices.Sort(out)
	return out
}

func TestWhatOthersTellIsBelievedAsFarAsItContradictsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		tell  func(known Member, b *book) Member
		taken bool
		alarm bool
	}{
		"a newcomer":                      {func(Member, *book) Member { m, _ := node(t, "new"); return m }, true, false},
		"a newer record":                  {func(m Member, _ *book) Member { m.Host, m.Serial = "new", 1; return m }, true, false},
		"an older record":                 {func(m Member, _ *book) Member { m.Host = "new"; return m }, false, false},
		"a known UUID with another key":   {func(m Member, _ *book) Member { m.Host, m.Key, m.Serial = "new", NewKey().Public(), 9; return m }, false, true},
		"a known key with another UUID":   {func(m Member, _ *book) Member { n, _ := node(t, "new"); n.Key = m.Key; return n }, false, true},
		"a known address of another":      {func(m Member, _ *book) Member { n, _ := node(t, "new"); n.Address = m.Address; return n }, false, true},
		"another address of a member":     {func(m Member, _ *book) Member { m.Host, m.Serial, m.Address = "new", 9, m.Address.Next(); return m }, false, false},
		"this node's UUID":                {func(_ Member, b *book) Member { n, _ := node(t, "new"); n.UUID = b.self.UUID; return n }, false, true},
		"this node's address":             {func(_ Member, b *book) Member { n, _ := node(t, "new"); n.Address = b.self.Address; return n }, false, true},
		"an endpoint on loopback":         {func(Member, *book) Member { return with("127.0.0.1:80") }, false, false},
		"an endpoint with the cloud's":    {func(Member, *book) Member { return with("169.254.169.254:80") }, false, false},
		"an endpoint inside the overlay":  {func(Member, *book) Member { return with("100.88.0.1:9484") }, false, false},
		"an endpoint for everybody":       {func(Member, *book) Member { return with("224.0.0.1:9484") }, false, false},
		"a serial that could not be more": {func(m Member, _ *book) Member { m.Host, m.Serial = "new", maxSerial+1; return m }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := testBook(t)
			known, _ := node(t, "known")
			check(t, errOf(b.meet(known)))
			told := c.tell(known, b)
			if told.Host == "" {
				n, _ := node(t, "new")
				n.Endpoints = told.Endpoints
				told = n
			}
			b.merge([]Member{told}, nil)
			if got := slices.Contains(hosts(b), "new"); got != c.taken {
				t.Errorf("taken: %v; it knows %v", got, hosts(b))
			}
			if got := len(b.conflicts()) > 0; got != c.alarm {
				t.Errorf("alarms: %q", b.conflicts())
			}
			if was := b.members[known.UUID]; was.Key != known.Key || was.Address != known.Address {
				t.Errorf("the known one is now %+v", was)
			}
		})
	}
}

func with(endpoint string) Member {
	return Member{Endpoints: []netip.AddrPort{netip.MustParseAddrPort(endpoint)}}
}

func TestAMemberKeepsWhatItIsThroughWhatOthersMakeUp(t *testing.T) {
	b := testBook(t)
	forged := b.self
	forged.Host, forged.Serial = "forged", 40
	b.merge([]Member{forged}, nil)
	if b.self.Host != "self" || b.self.Serial != 41 {
		t.Errorf("it tells of itself %s, serial %d", b.self.Host, b.self.Serial)
	}
}

func TestThereAreOnlySoManyMembersAndTombstones(t *testing.T) {
	b := testBook(t)
	first := netip.MustParseAddr("100.88.1.0")
	var members []Member
	for i := range maxMembers + 20 {
		first = first.Next()
		key := Key{1, byte(i), byte(i >> 8)}
		members = append(members, Member{UUID: uuid.New(), Host: "h", Key: key, Address: first, Boot: "b", Version: "v"})
	}
	b.merge(members, nil)
	if _, got, _ := b.known(); len(got) != maxMembers {
		t.Errorf("%d members", len(got))
	}
	var stones []Tombstone
	for range maxTombstones + 20 {
		stones = append(stones, Tombstone{UUID: uuid.New(), Host: "h", Address: first})
	}
	b.merge(nil, stones)
	if _, _, got := b.known(); len(got) != maxTombstones {
		t.Errorf("%d tombstones", len(got))
	}
	if n := len(b.conflicts()); n == 0 || n > maxAlarms {
		t.Errorf("%d alarms", n)
	}
	// The last word of this node's own neighbours still fits into a hello.
	a := b.reply(netip.MustParseAddr("192.0.2.1"))
	if n := len(text(t, a)); n > helloBytes {
		t.Errorf("an answer has %d bytes", n)
	}
}

func TestNoTombstoneKeepsANodeOutForGood(t *testing.T) {
	b := testBook(t)
	m, _ := node(t, "member")
	check(t, errOf(b.meet(m)))
	stone := Tombstone{UUID: m.UUID, Host: m.Host, Address: m.Address, Registered: maxEnded + 1, At: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)}
	b.merge(nil, []Tombstone{stone})
	if !slices.Contains(hosts(b), "member") {
		t.Error("a tombstone beyond all counting was believed")
	}
	stone.Registered = maxEnded
	b.merge(nil, []Tombstone{stone})
	if slices.Contains(hosts(b), "member") {
		t.Error("the highest tombstone was not believed")
	}
	m.Registered = stone.Registered + 1
	if r := b.refusal(m, terms); r != nil {
		t.Errorf("it cannot come back: %v", r)
	}
}

// Whatever order nodes hear things in, they end up knowing the same.
func TestMergingEndsTheSameInAnyOrder(t *testing.T) {
	self, _ := node(t, "self")
	var pool []Member
	for _, h := range []string{"a", "b", "c"} {
		m, _ := node(t, h)
		pool = append(pool, m)
	}
	rapid.Check(t, func(t *rapid.T) {
		type news struct {
			m []Member
			t []Tombstone
		}
		var all []news
		for range rapid.IntRange(1, 8).Draw(t, "news") {
			m := pool[rapid.IntRange(0, len(pool)-1).Draw(t, "who")]
			m.Registered = uint64(rapid.IntRange(0, 3).Draw(t, "registered"))
			if rapid.Bool().Draw(t, "stone") {
				all = append(all, news{t: []Tombstone{{UUID: m.UUID, Host: m.Host, Address: m.Address, Registered: m.Registered}}})
				continue
			}
			// One serial is one record: its content follows from it.
			m.Serial = uint64(rapid.IntRange(0, 3).Draw(t, "serial"))
			all = append(all, news{m: []Member{m}})
		}
		end := func(order []news) string {
			b := newBook(terms, self)
			for _, n := range order {
				b.merge(n.m, n.t)
			}
			_, members, stones := b.known()
			return text(t, members) + text(t, stones)
		}
		if one, other := end(all), end(rapid.Permutation(all).Draw(t, "order")); one != other {
			t.Fatalf("in one order %s, in another %s", one, other)
		}
	})
}

func TestTheBookIsKept(t *testing.T) {
	dir := t.TempDir()
	b := testBook(t)
	m, _ := node(t, "member")
	gone, _ := node(t, "gone")
	check(t, errOf(b.meet(m)))
	check(t, errOf(b.meet(gone)))
	_, _, err := b.bury(gone.UUID, time.Unix(0, 0))
	check(t, err)
	check(t, b.save(dir))

	again := newBook(terms, b.self)
	check(t, again.load(dir, slog.New(slog.DiscardHandler)))
	if got := hosts(again); !slices.Equal(got, []string{"member"}) {
		t.Errorf("it knows %v", got)
	}
	if r := again.refusal(gone, terms); r == nil || r.Why != Departed {
		t.Errorf("the one that is gone: %v", r)
	}
	if again.self.Serial <= b.self.Serial {
		t.Error("what it tells after a start is not newer")
	}
}

func text(t interface{ Fatal(...any) }, v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// A kernel names each boot anew: one that comes back is another machine's, which has
// all of the disk of the first.
func TestTwoMachinesWithOneKeyAreTold(t *testing.T) {
	b := testBook(t)
	m, _ := node(t, "copied")
	for i, boot := range []string{"first", "second", "second", "third"} {
		m.Boot, m.Serial = boot, uint64(i)
		check(t, errOf(b.meet(m)))
	}
	if told := b.conflicts(); len(told) > 0 {
		t.Errorf("of a member that was booted three times: %v", told)
	}
	m.Boot, m.Serial = "second", 9
	b.merge([]Member{m}, nil)
	if told := b.conflicts(); len(told) != 1 || !strings.Contains(told[0], "two machines are "+m.String()) {
		t.Errorf("of two that are booted: %v", told)
	}
}

func TestAConflictThatEndedIsToldNoMore(t *testing.T) {
	b := testBook(t)
	now := time.Now()
	b.now = func() time.Time { return now }
	b.alarm("one")
	now = now.Add(alarmTime)
	b.alarm("another")
	if told := b.conflicts(); len(told) != 2 {
		t.Errorf("while it is seen: %v", told)
	}
	now = now.Add(time.Second)
	if told := b.conflicts(); !slices.Equal(told, []string{"another"}) {
		t.Errorf("ten minutes after the first was seen last: %v", told)
	}
}

// A record that cannot be read is put aside: the others tell it again. A registration
// that the caller lost is the one that was kept.
func TestADamagedBookIsPutAsideAndALostRegistrationIsKnown(t *testing.T) {
	dir := t.TempDir()
	b := testBook(t)
	b.self.Registered = 3
	check(t, b.save(dir))
	lost := b.self
	lost.Registered = 1
	again := newBook(terms, lost)
	check(t, again.load(dir, slog.New(slog.DiscardHandler)))
	if again.self.Registered != 3 {
		t.Errorf("it is registered for the time number %d, and was for number 3", again.self.Registered)
	}

	name := filepath.Join(dir, StateFile)
	check(t, os.WriteFile(name, []byte(`{"self":`), 0o600))
	again = newBook(terms, lost)
	check(t, again.load(dir, slog.New(slog.DiscardHandler)))
	if _, err := os.Stat(name + ".damaged"); err != nil {
		t.Error(err)
	}
	check(t, again.save(dir))
}

func TestARefusalThatNobodyRepeatsIsForgotten(t *testing.T) {
	s, _ := answering(t)
	now := time.Now()
	s.Now = func() time.Time { return now }
	s.told("192.0.2.1:9484", "", &Refusal{Why: OtherVersion, Reason: "another version"})
	now = now.Add(alarmTime)
	s.told("192.0.2.2:9484", "", &Refusal{Why: OtherVersion, Reason: "another version"})
	if n := len(s.Status().Refused); n != 2 {
		t.Errorf("%d doors refuse, want both", n)
	}
	now = now.Add(time.Second)
	if _, still := s.Status().Refused["192.0.2.1:9484"]; still || len(s.Status().Refused) != 1 {
		t.Errorf("it tells %v", s.Status().Refused)
	}
}
