package converge

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// The nodes of these tests: the first is this one. Each registered an hour after
// the one before.
var (
	lookTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	self     = numbered(1)
	second   = numbered(2)
	third    = numbered(3)
	fourth   = numbered(4)
)

func numbered(i int) mesh.Member {
	return mesh.Member{
		UUID:    uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, i)),
		Host:    fmt.Sprint("xivo", i),
		Name:    fmt.Sprint("xivo", i, "-0123abcd"),
		Address: fmt.Sprint("10.0.0.", i),
		Version: "16.03",

		Registered: time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC),
		Seen:       lookTime.Add(-time.Minute),
	}
}

func with(m mesh.Member, change func(*mesh.Member)) mesh.Member {
	change(&m)
	return m
}

// sees is a view of a node of a mesh without surprises, as changed.
func sees(changes ...func(*View)) *View {
	v := &View{
		At:        lookTime,
		Trusted:   lookTime,
		FirstPass: lookTime.Add(-time.Hour),
		Self:      self,
		Document:  &cloudinit.Config{Topology: cloudinit.TopologyMesh},
		Joinable:  true,
	}
	v.WAN.SilentSince = map[string]time.Time{}
	v.WAN.Notes = Notes{Departed: mesh.Departures{}, Refusals: map[string]Refusal{}}
	for _, change := range changes {
		change(v)
	}
	return v
}

func knows(ms ...mesh.Member) func(*View) { return func(v *View) { v.Known = ms } }

func lives(v *View, m mesh.Member, a Answer) {
	v.WAN.Living = append(v.WAN.Living, consul.Member{Name: m.Name + "." + m.Name, Datacenter: m.Name, Address: m.Address, Alive: true})
	v.WAN.Answers = append(v.WAN.Answers, a)
}

// answers: they live in the WAN and say who they are.
func answers(ms ...mesh.Member) func(*View) {
	return func(v *View) {
		for _, m := range ms {
			lives(v, m, Answer{Members: []mesh.Member{m}})
		}
	}
}

// silent: it lives in the WAN, and has not said who it is for so long.
func silent(m mesh.Member, since time.Duration) func(*View) {
	return func(v *View) {
		lives(v, m, Answer{Err: errors.New("no answer")})
		v.WAN.SilentSince[m.Address] = v.At.Add(-since)
	}
}

// departed: it is noted here that it left, so long after it registered.
func departed(m mesh.Member, after time.Duration) func(*View) {
	return func(v *View) { v.WAN.Notes.Departed[m.UUID] = m.Registered.Add(after) }
}

// farAhead is told by a clock that is wrong, or by somebody who wants to be right for
// ever.
var farAhead = time.Date(2199, 6, 1, 0, 0, 0, 0, time.UTC)

// answersWith: it lives in the WAN, and tells that another one left at that time.
func answersWith(m mesh.Member, left uuid.UUID, at time.Time) func(*View) {
	return func(v *View) { lives(v, m, Answer{Members: []mesh.Member{m}, Departed: mesh.Departures{left: at}}) }
}

// noted: it is noted here that it left at that time.
func noted(id uuid.UUID, at time.Time) func(*View) {
	return func(v *View) { v.WAN.Notes.Departed[id] = at }
}

// crowd are members that nobody knows.
func crowd(n int) (ms []mesh.Member) {
	for i := range n {
		m := numbered(1000 + i)
		m.Address = fmt.Sprintf("10.1.%d.%d", i/200, i%200+1)
		ms = append(ms, m)
	}
	return ms
}

func refusedBy(name, reason, version string) func(*View) {
	return func(v *View) { v.WAN.Notes.Refusals[name] = Refusal{Reason: reason, Version: version} }
}

func peers(addresses ...string) func(*View) {
	return func(v *View) { v.Peers.Addresses = addresses }
}

func consulDown(v *View) {
	v.WAN = WAN{Err: errors.New("no leader"), Notes: v.WAN.Notes, SilentSince: v.WAN.SilentSince}
}

func notJoinable(v *View) { v.Joinable = false }

func TestWhoIsAMemberRefusedSuspendedAndTold(t *testing.T) {
	type outcome struct {
		Members, Suspended, Refused, TellRefused, NotManaged, TellDeparted []string
		Unfinished                                                         bool
	}
	newer := with(third, func(m *mesh.Member) { m.Version = "16.04" })
	copied := with(third, func(m *mesh.Member) { m.UUID = second.UUID })
	away := with(second, func(m *mesh.Member) { m.Seen = lookTime.Add(-11 * time.Minute) })
	suspendedBefore := with(away, func(m *mesh.Member) { m.Suspended = true })
	back := with(second, func(m *mesh.Member) { m.Registered = m.Registered.Add(48 * time.Hour) })
	for _, c := range []struct {
		name string
		view *View
		want outcome
	}{
		{"nobody", sees(), outcome{}},
		{"a newcomer says who it is", sees(answers(second)), outcome{Members: []string{"xivo2"}}},
		{"a known one and a newcomer", sees(knows(second), answers(third, second)), outcome{Members: []string{"xivo2", "xivo3"}}},
		{"a known one that is not in the WAN", sees(knows(second)), outcome{Members: []string{"xivo2"}}},
		{"one that does not answer is nobody yet", sees(silent(second, 0)), outcome{Unfinished: true}},
		{"a known one that does not answer", sees(knows(second), silent(second, 0)), outcome{Members: []string{"xivo2"}, Unfinished: true}},
		{"one that answers, and tells nothing of itself", sees(func(v *View) { lives(v, second, Answer{}) }), outcome{NotManaged: []string{"xivo2-0123abcd.xivo2-0123abcd"}}},
		{"this node itself, as others know it", sees(answers(second), func(v *View) { lives(v, self, Answer{Members: []mesh.Member{self}}) }), outcome{Members: []string{"xivo2"}}},
		{"one that tells of 300 others, too: none of them appears, nor does it", sees(answers(third), func(v *View) { lives(v, second, Answer{Members: append(crowd(300), second)}) }),
			outcome{Members: []string{"xivo3"}, NotManaged: []string{"xivo2-0123abcd.xivo2-0123abcd"}}},
		{"a known one that tells of others stays, as one that is silent", sees(knows(second), func(v *View) { lives(v, second, Answer{Members: []mesh.Member{second, third}}) }),
			outcome{Members: []string{"xivo2"}, NotManaged: []string{"xivo2-0123abcd.xivo2-0123abcd"}}},

		{"silent for eleven minutes", sees(knows(away), silent(away, 11*time.Minute)), outcome{Suspended: []string{"xivo2"}, Unfinished: true}},
		{"silent since before this machine was booted", sees(knows(away), func(v *View) { v.FirstPass = v.At }), outcome{Members: []string{"xivo2"}}},
		{"suspended, and still silent after this machine was booted", sees(knows(suspendedBefore), func(v *View) { v.FirstPass = v.At }), outcome{Suspended: []string{"xivo2"}}},
		{"suspended, and answers", sees(knows(suspendedBefore), answers(second)), outcome{Members: []string{"xivo2"}}},

		{"of another version, for a mesh", sees(knows(second), answers(second, newer)), outcome{Members: []string{"xivo2"}, Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},
		{"of another version, both new, we were first", sees(answers(newer)), outcome{Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},
		{"of another version, both new, it was first and tells us", sees(answers(newer), func(v *View) { v.Self.Registered = newer.Registered.Add(time.Hour) }), outcome{Refused: []string{"xivo3"}}},
		{"of another version, it was first, but we have members", sees(knows(second), answers(newer), func(v *View) { v.Self.Registered = newer.Registered.Add(time.Hour) }), outcome{Members: []string{"xivo2"}, Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},
		{"a known one that was upgraded", sees(knows(third), answers(newer)), outcome{Members: []string{"xivo3"}}},
		{"with the UUID of a member", sees(knows(second), answers(copied, second)), outcome{Members: []string{"xivo2"}, Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},

		{"it left", sees(knows(second, third), departed(second, time.Minute)), outcome{Members: []string{"xivo3"}}},
		{"it left, and does not know that", sees(knows(second), answers(second), departed(second, time.Minute)), outcome{TellDeparted: []string{"xivo2 to xivo2-0123abcd"}}},
		{"it left, and knows it", sees(knows(second), departed(second, time.Minute), func(v *View) {
			lives(v, second, Answer{Members: []mesh.Member{second}, Departed: mesh.Departures{second.UUID: second.Registered.Add(time.Minute)}})
		}), outcome{}},
		{"it left as another one tells", sees(knows(second, third), func(v *View) {
			lives(v, third, Answer{Members: []mesh.Member{third}, Departed: mesh.Departures{second.UUID: second.Registered.Add(time.Minute)}})
		}), outcome{Members: []string{"xivo3"}, TellDeparted: []string{"xivo2 to this node"}}},
		{"it left as another one tells, who heard of it earlier than we", sees(knows(third), departed(second, time.Hour), func(v *View) {
			lives(v, third, Answer{Members: []mesh.Member{third}, Departed: mesh.Departures{second.UUID: second.Registered.Add(time.Minute)}})
		}), outcome{Members: []string{"xivo3"}}},
		{"it left, as one tells whose clock is ahead by years", sees(knows(second, third), answersWith(third, second.UUID, farAhead)), outcome{Members: []string{"xivo3"}, TellDeparted: []string{"xivo2 to this node"}}},
		{"it left, as one told whose clock is ahead by years, and came back by a person's word", sees(knows(third), answersWith(third, second.UUID, farAhead), answers(with(second, func(m *mesh.Member) { m.Registered = laterThan(farAhead) }))),
			outcome{Members: []string{"xivo2", "xivo3"}, TellDeparted: []string{"xivo2 to this node"}}},
		{"two times that are ahead by years: the one that is here stays, and nobody is told again", sees(knows(third), answersWith(third, second.UUID, farAhead.Add(time.Hour)), noted(second.UUID, farAhead.Add(2*time.Hour))), outcome{Members: []string{"xivo3"}}},
		{"both new, its clock is ahead by years, and we came later: it was not first", sees(answers(with(newer, func(m *mesh.Member) { m.Registered = farAhead }))), outcome{Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},
		{"our clock was reset, and what the image was given counts", sees(answers(with(second, func(m *mesh.Member) { m.Registered = farAhead })), noted(second.UUID, lookTime.Add(time.Hour)), func(v *View) { v.At = time.Unix(0, 0).UTC() }),
			outcome{TellDeparted: []string{"xivo2 to xivo2-0123abcd"}}},
		{"both new, and we came by a clock that was ahead by years: that counts as now, so we were first", sees(answers(with(newer, func(m *mesh.Member) { m.Registered = lookTime.Add(time.Hour) })), func(v *View) { v.Self.Registered = farAhead }),
			outcome{Refused: []string{"xivo3"}, TellRefused: []string{"xivo3"}}},
		{"it left, and came back", sees(knows(third), answers(third, back), departed(second, time.Minute)), outcome{Members: []string{"xivo2", "xivo3"}}},

		{"this node left", sees(knows(second), departed(self, time.Minute), func(v *View) { v.WAN.Living = []consul.Member{{Datacenter: second.Name}} }), outcome{}},
		{"this node left, and came back", sees(knows(second), departed(self, time.Minute), func(v *View) { v.Self.Registered = v.Self.Registered.Add(time.Hour) }), outcome{Members: []string{"xivo2"}}},
		{"this node is refused, and asks nobody", sees(refusedBy("x", "r", "16.03"), func(v *View) { v.WAN.Living = []consul.Member{{Datacenter: second.Name}} }), outcome{}},

		{"Consul cannot be read", sees(knows(second, suspendedOf(third)), consulDown), outcome{Members: []string{"xivo2"}, Suspended: []string{"xivo3"}}},
		{"Consul cannot be read, and one has been away for long", sees(knows(away), consulDown), outcome{Members: []string{"xivo2"}}},
		{"Consul could be read in part", sees(knows(second), answers(third), func(v *View) { v.WAN.Err = errors.New("the list of the WAN is cut off") }), outcome{Members: []string{"xivo2"}}},
		{"the broker cannot be read", sees(knows(second), answers(second, third), func(v *View) { v.Broker.Err = errors.New("down") }), outcome{Members: []string{"xivo2", "xivo3"}}},
		{"the database cannot be read", sees(knows(second), answers(second, third), func(v *View) { v.Directory.Err, v.SettingsErr = errors.New("down"), errors.New("down") }), outcome{Members: []string{"xivo2", "xivo3"}}},
		{"a version that cannot be joined", sees(knows(second), answers(third), notJoinable), outcome{Members: []string{"xivo2"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view, Memory{})
			got := outcome{NotManaged: d.NotManaged, Unfinished: d.Unfinished}
			host := map[uuid.UUID]string{}
			for _, m := range []mesh.Member{self, second, third, fourth} {
				host[m.UUID] = m.Host
			}
			for _, m := range []mesh.Member{second, third, fourth} { // in the order of their numbers
				for _, is := range d.Members {
					switch {
					case is.UUID != m.UUID:
					case is.Suspended:
						got.Suspended = append(got.Suspended, is.Host)
					default:
						got.Members = append(got.Members, is.Host)
					}
				}
			}
			for _, r := range d.Refused {
				got.Refused = append(got.Refused, r.Member.Host)
			}
			for _, r := range d.TellRefused {
				got.TellRefused = append(got.TellRefused, r.Member.Host)
			}
			for _, g := range d.TellDeparted {
				to := g.Datacenter
				if to == "" {
					to = "this node"
				}
				got.TellDeparted = append(got.TellDeparted, host[g.UUID]+" to "+to)
				if d.Departed[g.UUID].IsZero() {
					t.Errorf("nothing says when %s left", host[g.UUID])
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func suspendedOf(m mesh.Member) mesh.Member { m.Suspended = true; return m }

func TestANewMemberWasSeenNowAndASilentOneWhenItWas(t *testing.T) {
	d := decide(sees(knows(second, third), answers(third), silent(second, time.Minute)), Memory{})
	seen := map[string]time.Time{}
	for _, m := range d.Members {
		seen[m.Host] = m.Seen
	}
	if want := (map[string]time.Time{"xivo2": second.Seen, "xivo3": lookTime}); !cmp.Equal(want, seen) {
		t.Error(cmp.Diff(want, seen))
	}
}

func TestWhetherANodeKeepsOut(t *testing.T) {
	askedBefore := Memory{askedAgain: true}
	const why = "refused by a-01: this node runs another version"
	refused := refusedBy("a-01", "runs another version", "16.03")
	left := self.Registered.Add(time.Minute)
	for _, c := range []struct {
		name     string
		view     *View
		memory   Memory
		keepsOut string
		askAgain bool
		join     bool
		leftAt   time.Time
	}{
		{"it is to be in its mesh", sees(), askedBefore, "", false, true, time.Time{}},
		{"nothing is to be asked again where nobody refused it", sees(), Memory{}, "", false, true, time.Time{}},
		{"it was refused", sees(refused), askedBefore, why, false, false, time.Time{}},
		{"it was refused before this process was started, and asks again", sees(refused), Memory{}, why, true, true, time.Time{}},
		{"it left, and was refused before this process was started", sees(refused, departed(self, time.Minute)), Memory{}, left.String(), true, false, left},
		{"it was refused when it had another version", sees(refusedBy("a-01", "runs another version", "16.02")), Memory{}, "", false, true, time.Time{}},
		{"it is refused by one, but has members", sees(refused, knows(second)), Memory{}, "", false, true, time.Time{}},
		{"two refuse it: always the same is named", sees(refused, refusedBy("b-02", "is a copy", "16.03"), refusedBy("c-03", "is a copy", "16.03")), askedBefore, why, false, false, time.Time{}},
		{"of two refusals, the one of this version counts", sees(refusedBy("a-01", "runs another version", "16.02"), refusedBy("b-02", "is a copy", "16.03")), askedBefore, "refused by b-02: this node is a copy", false, false, time.Time{}},
		{"it left", sees(knows(second), departed(self, time.Minute)), Memory{}, left.String(), false, false, left},
		{"it left, and came back", sees(departed(self, time.Minute), func(v *View) { v.Self.Registered = left.Add(1) }), askedBefore, "", false, true, time.Time{}},
		{"another one left", sees(departed(second, time.Minute)), askedBefore, "", false, true, time.Time{}},
		{"it left, and was refused", sees(refused, departed(self, time.Minute)), askedBefore, left.String(), false, false, left},
		{"Consul cannot be read: what was noted last counts", sees(refused, consulDown), askedBefore, why, false, false, time.Time{}},
		{"Consul cannot be read, and it had left", sees(departed(self, time.Minute), consulDown), askedBefore, left.String(), false, false, left},
	} {
		t.Run(c.name, func(t *testing.T) {
			peers("10.0.0.2")(c.view)
			d := decide(c.view, c.memory)
			if d.KeepsOut != c.keepsOut || d.AskAgain != c.askAgain || !d.LeftAt.Equal(c.leftAt) {
				t.Errorf("keeps out for %q, asks again: %t, left at %s; want %q, %t, %s", d.KeepsOut, d.AskAgain, d.LeftAt, c.keepsOut, c.askAgain, c.leftAt)
			}
			if joins := len(d.Join) > 0; joins != c.join {
				t.Errorf("it joins %v", d.Join)
			}
		})
	}
}

func TestWhomTheFirewallLetsIn(t *testing.T) {
	allows := func(addresses ...string) func(*View) {
		return func(v *View) { v.Document.Firewall.Allow = addresses }
	}
	newer := with(third, func(m *mesh.Member) { m.Version = "16.04" })
	for _, c := range []struct {
		name string
		view *View
		want []string
	}{
		{"nobody", sees(), nil},
		{"the document's peers and whom it allows", sees(peers("192.0.2.9", "192.0.2.1"), allows("10.8.0.0/16")), []string{"10.8.0.0/16", "192.0.2.1", "192.0.2.9"}},
		{"the members, also silent ones", sees(knows(second), silent(second, time.Second), answers(third)), []string{"10.0.0.2", "10.0.0.3"}},
		{"the members, also suspended ones", sees(knows(suspendedOf(second))), []string{"10.0.0.2"}},
		{"each once", sees(peers("10.0.0.2"), allows("10.0.0.2"), knows(second), answers(second)), []string{"10.0.0.2"}},

		{"a newcomer with a document lets all who live ask it", sees(peers("10.0.0.2"), silent(second, 0), silent(third, 0)), []string{"10.0.0.2", "10.0.0.3"}},
		{"a newcomer whose peer cannot be resolved, too", sees(func(v *View) { v.Peers.Err = errors.New("no such host") }, silent(second, 0)), []string{"10.0.0.2"}},
		{"a newcomer lets one ask that tells nothing of itself", sees(peers("10.0.0.2"), func(v *View) { lives(v, third, Answer{}) }), []string{"10.0.0.2", "10.0.0.3"}},
		{"a newcomer does not let in whom it refuses", sees(peers("10.0.0.2"), silent(second, 0), answers(newer)), []string{"10.0.0.2"}},
		{"who is no newcomer lets nobody ask at once", sees(silent(second, 0)), nil},
		{"silent for less than 15 s", sees(knows(second), silent(third, 14*time.Second)), []string{"10.0.0.2"}},
		{"silent for 15 s", sees(knows(second), silent(third, 15*time.Second)), []string{"10.0.0.2"}},
		{"silent for longer", sees(knows(second), silent(third, 15*time.Second+1)), []string{"10.0.0.2", "10.0.0.3"}},
		{"silent for longer, for a node without a document's peers", sees(silent(third, time.Minute)), []string{"10.0.0.3"}},
		{"one that a member refuses", sees(knows(second), answers(newer)), []string{"10.0.0.2"}},
		{"one that tells nothing of itself", sees(knows(second), func(v *View) { lives(v, third, Answer{}) }), []string{"10.0.0.2"}},

		{"a node that was refused keeps to whom it allows", sees(peers("10.0.0.2"), allows("192.0.2.1"), refusedBy("x", "r", "16.03"), silent(second, time.Hour)), []string{"192.0.2.1"}},
		{"so does one that left", sees(peers("10.0.0.2"), allows("192.0.2.1"), knows(third), departed(self, time.Minute), silent(second, time.Hour)), []string{"192.0.2.1"}},
		{"a member that left", sees(knows(second, third), departed(second, time.Minute)), []string{"10.0.0.3"}},
		{"Consul cannot be read: the known members stay", sees(knows(second), peers("192.0.2.1"), silent(third, time.Hour), consulDown), []string{"10.0.0.2", "192.0.2.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, decide(c.view, Memory{askedAgain: true}).LetIn); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhoIsANewcomer(t *testing.T) {
	for _, c := range []struct {
		name   string
		view   *View
		before bool
		want   bool
	}{
		{"it knows nobody, and its document names no other", sees(), false, false},
		{"it knows nobody, and its document names no other any more", sees(), true, false},
		{"it knows nobody yet", sees(peers("10.0.0.2")), false, true},
		{"it knows nobody, and its peer cannot be resolved", sees(func(v *View) { v.Peers.Err = errors.New("no such host") }), false, true},
		{"all took part at once", sees(peers("10.0.0.2"), answers(second)), false, false},
		{"some have not answered yet", sees(peers("10.0.0.2"), answers(second), silent(third, 0)), false, true},
		{"it knows one, and another does not answer yet", sees(knows(second), answers(second), silent(third, 0)), true, true},
		{"all have answered now", sees(knows(second), answers(second, third)), true, false},
		{"it was none, and one falls silent", sees(knows(second), silent(second, 0)), false, false},
		{"Consul cannot be read, and it was one", sees(knows(second), consulDown), true, true},
		{"Consul cannot be read, and it was none", sees(peers("10.0.0.2"), consulDown), false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(c.view, Memory{newcomer: c.before}).Newcomer; got != c.want {
				t.Errorf("a newcomer: %t, want %t", got, c.want)
			}
		})
	}
}

func TestWhichLinksAreWanted(t *testing.T) {
	errName := errors.New("no such host")
	hub := func(address string, err error) func(*View) {
		return func(v *View) {
			v.Document.Topology, v.Peers.Hub, v.Peers.HubErr = cloudinit.TopologyHub, address, err
		}
	}
	for _, c := range []struct {
		name string
		view *View
		want []string
		says string // of the error
	}{
		{"a mesh", sees(knows(second), answers(second, third)), []string{"xivo2", "xivo3"}, ""},
		{"a mesh that Consul does not tell of", sees(knows(second, third), consulDown), []string{"xivo2", "xivo3"}, ""},
		{"a mesh of nobody", sees(), nil, ""},
		{"the hub is this node itself", sees(hub(self.Address, nil), knows(second, third)), []string{"xivo2", "xivo3"}, ""},
		{"the hub is a member", sees(hub(third.Address, nil), knows(second, third)), []string{"xivo3"}, ""},
		{"the hub is no member yet", sees(hub(fourth.Address, nil), knows(second)), nil, "the hub 10.0.0.4 is not a member of the mesh (yet)"},
		{"the hub's name cannot be resolved", sees(hub("", errName), knows(second)), nil, errName.Error()},
		{"nobody knows that topology", sees(knows(second), func(v *View) { v.Document.Topology = "star" }), nil, "neither mesh, ring nor hub"},
		{"this node left", sees(knows(second), departed(self, time.Minute)), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view, Memory{})
			hosts := map[string]bool{}
			for _, m := range d.Links.Upstreams {
				hosts[m.Host] = true
			}
			want := map[string]bool{}
			for _, host := range c.want {
				want[host] = true
			}
			if diff := cmp.Diff(want, hosts); diff != "" {
				t.Errorf("upstreams (-want +got):\n%s", diff)
			}
			if c.says == "" && d.LinksErr != nil || c.says != "" && (d.LinksErr == nil || !strings.Contains(d.LinksErr.Error(), c.says)) {
				t.Errorf("the error is %v, want %q", d.LinksErr, c.says)
			}
		})
	}
}

func TestWhatAPersonIsTold(t *testing.T) {
	upstream := func(host, leadsTo string) func(*View) {
		return func(v *View) {
			v.Broker.Upstreams = append(v.Broker.Upstreams, rabbitmq.FoundUpstream{Name: upstreamName(second), Hosts: []string{host}}, rabbitmq.FoundUpstream{Name: "site", Hosts: []string{"other.example", host}})
			v.Broker.HostsByAddress = map[string][]string{leadsTo: {host}}
		}
	}
	source := func(ours bool, leadsTo string) func(*View) {
		return func(v *View) {
			v.Directory.Sources = []directory.Found{{Name: "sitea", Address: "a.example", OfMesh: ours}}
			v.Directory.HostsByAddress = map[string][]string{leadsTo: {"a.example"}}
		}
	}
	leftWAN := func(why string) func(*View) { return func(v *View) { v.Marks.LeftWAN = why } }
	const why = "refused by x: this node r"
	refused := refusedBy("x", "r", "16.03")
	namesake := with(second, func(m *mesh.Member) { m.Host = self.Host })
	askedBefore := Memory{askedAgain: true}
	for _, c := range []struct {
		name   string
		view   *View
		memory Memory
		want   []string // a part of each notice
		byHand string   // the member for which an upstream was made by hand
	}{
		{"nothing", sees(knows(second), answers(second)), askedBefore, nil, ""},
		{"what the settings are", sees(func(v *View) { v.Settings = []string{"one", "another"} }), askedBefore, []string{"one", "another"}, ""},

		{"an upstream by hand", sees(knows(second), upstream("b.example", second.Address)), askedBefore, []string{"the upstream site was made by hand for xivo2 (10.0.0.2): it is left as it is, and not doubled"}, second.Address},
		{"an upstream by hand that leads elsewhere", sees(knows(second), upstream("b.example", "192.0.2.1")), askedBefore, nil, ""},
		{"an upstream by hand for a member to which no link is wanted", sees(knows(second, third), upstream("b.example", second.Address), func(v *View) {
			v.Document.Topology, v.Peers.Hub = cloudinit.TopologyHub, third.Address
		}), askedBefore, nil, ""},
		{"an upstream by hand for a member that left", sees(knows(second), departed(second, time.Minute), upstream("b.example", second.Address)), askedBefore, nil, ""},
		{"the broker cannot be read", sees(knows(second), func(v *View) { v.Broker.Err = errors.New("down") }), askedBefore, nil, ""},

		{"a directory by hand", sees(knows(second), source(false, second.Address)), askedBefore, []string{"the directory sitea was made by hand for a.example: it is left as it is, and not doubled"}, ""},
		{"a directory of ours", sees(knows(second), source(true, second.Address)), askedBefore, nil, ""},
		{"a directory by hand that leads elsewhere", sees(knows(second), source(false, "192.0.2.1")), askedBefore, nil, ""},
		{"a directory by hand, while Consul cannot be read", sees(knows(second), consulDown, source(false, second.Address)), askedBefore, []string{"the directory sitea"}, ""},

		{"two nodes have one host name", sees(answers(namesake)), askedBefore, []string{"2 nodes have the host name xivo1: 10.0.0.2 "}, ""},
		{"two have one host name, and cannot be joined", sees(knows(namesake), notJoinable), askedBefore, nil, ""},

		{"the WAN still has a node that was refused", sees(refused, leftWAN(why), silent(second, 0)), askedBefore, []string{"Consul's WAN still has this node, with xivo2-0123abcd.xivo2-0123abcd,"}, ""},
		{"the WAN still has a node that left", sees(departed(self, time.Minute), leftWAN(self.Registered.Add(time.Minute).String()), silent(second, 0)), askedBefore, []string{"Consul's WAN still has this node"}, ""},
		{"it asks again first", sees(refused, leftWAN(why), silent(second, 0)), Memory{}, nil, ""},
		{"it has not left the WAN yet", sees(refused, silent(second, 0)), askedBefore, nil, ""},
		{"it left the WAN for another reason", sees(refused, leftWAN("refused by y: this node q"), silent(second, 0)), askedBefore, nil, ""},
		{"the WAN has it no more", sees(refused, leftWAN(why)), askedBefore, nil, ""},
		{"it is in its mesh again", sees(leftWAN(why), answers(second)), askedBefore, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view, c.memory)
			if len(d.Notices) != len(c.want) {
				t.Fatalf("told %q, want %q", d.Notices, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(d.Notices[i], want) {
					t.Errorf("told %q, want %q", d.Notices[i], want)
				}
			}
			if len(d.ByHand) > 1 || len(d.ByHand) == 1 && len(d.ByHand[c.byHand]) == 0 || c.byHand != "" && len(d.ByHand) == 0 {
				t.Errorf("made by hand: %v, want for %q", d.ByHand, c.byHand)
			}
		})
	}
}

// Deciding changes neither the view nor what the process remembers.
func TestDecidingIsPure(t *testing.T) {
	view := func() *View {
		return sees(peers("10.0.0.3", "10.0.0.2"), knows(third, with(second, func(m *mesh.Member) { m.Seen = lookTime.Add(-time.Hour) })), silent(second, time.Hour),
			departed(fourth, time.Minute), func(v *View) {
				v.Settings, v.Document.Firewall.Allow = []string{"set"}, []string{"192.0.2.2", "192.0.2.1"}
				lives(v, third, Answer{Members: []mesh.Member{third}, Departed: mesh.Departures{fourth.UUID: fourth.Registered.Add(time.Hour)}})
			})
	}
	v, m := view(), Memory{newcomer: true}
	first := decide(v, m)
	if diff := cmp.Diff(view(), v, cmp.Comparer(func(a, b error) bool { return fmt.Sprint(a) == fmt.Sprint(b) }), cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("the view changed:\n%s", diff)
	}
	if !m.newcomer || m.askedAgain {
		t.Errorf("the memory changed: %+v", m)
	}
	if diff := cmp.Diff(first, decide(v, m)); diff != "" {
		t.Errorf("it decides otherwise a second time:\n%s", diff)
	}
}
