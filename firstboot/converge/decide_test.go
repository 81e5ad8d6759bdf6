package converge

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// The nodes of these tests: the first is this one.
var (
	lookTime = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	leftTime = lookTime.Add(-time.Hour)
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
		Seen:    lookTime.Add(-time.Minute),
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
		FirstPass: lookTime.Add(-time.Hour),
		Self:      self,
		Document:  &cloudinit.Config{Topology: cloudinit.TopologyMesh},
		Joinable:  true,
	}
	v.Overlay.Status = &overlay.Status{}
	for _, change := range changes {
		change(v)
	}
	return v
}

func knows(ms ...mesh.Member) func(*View) { return func(v *View) { v.Known = ms } }

// tells: the mesh's network has the member, with the last handshake so long ago;
// negative: never.
func tells(handshake time.Duration, ms ...mesh.Member) func(*View) {
	return func(v *View) {
		for _, m := range ms {
			p := overlay.PeerStatus{Handshake: handshake, Reached: handshake >= 0 && handshake < 3*time.Minute}
			p.UUID = m.UUID
			v.Overlay.Status.Peers = append(v.Overlay.Status.Peers, p)
			m.Seen, m.Suspended = time.Time{}, false
			v.Overlay.Members = append(v.Overlay.Members, m)
		}
	}
}

// reached: the mesh's network has them, and reaches them now.
func reached(ms ...mesh.Member) func(*View) { return tells(0, ms...) }

// silent: it has it, and never reached it since the service was started.
func silent(ms ...mesh.Member) func(*View) { return tells(-1, ms...) }

// left: its registration is over.
func left(m mesh.Member) func(*View) {
	return func(v *View) { v.Overlay.Status.Departures = append(v.Overlay.Status.Departures, m.UUID) }
}

// leftItself: so is this node's.
func leftItself(v *View) { v.Overlay.Status.Departed, v.Overlay.Status.DepartedAt = true, leftTime }

// refuses: who answers there does not let this node in.
func refuses(door string, why overlay.Why, reason string) func(*View) {
	return func(v *View) {
		if v.Overlay.Status.Refused == nil {
			v.Overlay.Status.Refused = map[string]*overlay.Refusal{}
		}
		v.Overlay.Status.Refused[door] = &overlay.Refusal{Why: why, Reason: reason}
	}
}

// inWAN: their Consuls live in the WAN of this node's.
func inWAN(ms ...mesh.Member) func(*View) {
	return func(v *View) {
		for _, m := range ms {
			v.WAN.Living = append(v.WAN.Living, consul.Member{Name: m.Name + "." + m.Name, Datacenter: m.Name, Address: m.Address, Alive: true})
		}
	}
}

func overlayDown(v *View) { v.Overlay = Overlay{Err: overlay.ErrNotRunning} }

func notJoinable(v *View) { v.Joinable, v.Overlay = false, Overlay{} }

func TestWhoIsAMemberSuspendedReachedAndNotManaged(t *testing.T) {
	type outcome struct {
		Members, Suspended, Join, NotManaged []string
		Unfinished                           bool
	}
	away := with(second, func(m *mesh.Member) { m.Seen = lookTime.Add(-11 * time.Minute) })
	suspendedBefore := with(away, func(m *mesh.Member) { m.Suspended = true })
	both := []string{"xivo2", "xivo3"}
	for _, c := range []struct {
		name string
		view *View
		want outcome
	}{
		{"nobody", sees(), outcome{}},
		{"a newcomer", sees(reached(second)), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},
		{"a known one and a newcomer", sees(knows(second), reached(second, third)), outcome{Members: both, Join: []string{"10.0.0.2", "10.0.0.3"}}},
		{"a newcomer that is not reached yet is a member", sees(silent(second)), outcome{Members: []string{"xivo2"}, Unfinished: true}},
		{"a known one that falls silent", sees(knows(second), tells(4*time.Minute, second)), outcome{Members: []string{"xivo2"}, Unfinished: true}},

		{"silent for eleven minutes", sees(knows(away), silent(second)), outcome{Suspended: []string{"xivo2"}}},
		{"silent for eleven minutes, as its handshake tells", sees(knows(second), tells(11*time.Minute, second), knows(away)), outcome{Suspended: []string{"xivo2"}}},
		{"silent since before this machine was booted", sees(knows(away), silent(second), func(v *View) { v.FirstPass = v.At }), outcome{Members: []string{"xivo2"}, Unfinished: true}},
		{"suspended, and still silent after this machine was booted", sees(knows(suspendedBefore), silent(second), func(v *View) { v.FirstPass = v.At }), outcome{Suspended: []string{"xivo2"}}},
		{"suspended, and returned", sees(knows(suspendedBefore), reached(second)), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},
		{"reached without a handshake, as in a network that an operator brought", sees(knows(suspendedBefore), silent(second), func(v *View) { v.Overlay.Status.Peers[0].Reached = true }),
			outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},

		{"it left", sees(knows(second, third), reached(third), left(second)), outcome{Members: []string{"xivo3"}, Join: []string{"10.0.0.3"}}},
		{"it left, and came back", sees(knows(third), reached(third, second), left(second)), outcome{Members: both, Join: []string{"10.0.0.3", "10.0.0.2"}}},
		{"all others left", sees(knows(second), left(second)), outcome{}},
		{"the service lost the record of a member, which left nowhere", sees(knows(second, third), reached(third)), outcome{Members: both, Join: []string{"10.0.0.3"}, Unfinished: true}},
		{"it lost that of all", sees(knows(second, third)), outcome{Members: both, Unfinished: true}},

		{"this node left", sees(knows(second), silent(second), leftItself), outcome{}},
		{"this node is refused, and never had members", sees(refuses("192.0.2.1", overlay.OtherVersion, "r")), outcome{}},
		{"this node is refused, and has members that are away", sees(knows(second), silent(second), refuses("192.0.2.1", overlay.OtherVersion, "r")), outcome{Members: []string{"xivo2"}, Unfinished: true}},
		{"one refuses this node, others do not", sees(knows(second), reached(second), refuses("192.0.2.1", overlay.Departed, "r")), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},
		{"this node was forgotten while it was away", sees(knows(second), silent(second), refuses("192.0.2.1", overlay.Departed, "r")), outcome{}},

		{"the service does not run", sees(knows(second, suspendedOf(third)), overlayDown), outcome{Members: []string{"xivo2"}, Suspended: []string{"xivo3"}}},
		{"the service does not run, and one has been away for long", sees(knows(away), overlayDown), outcome{Members: []string{"xivo2"}}},
		{"a member's Consul is in the WAN", sees(reached(second), inWAN(second)), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},
		{"somebody else's is", sees(reached(second), inWAN(second, fourth)), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}, NotManaged: []string{"xivo4-0123abcd.xivo4-0123abcd"}}},
		{"Consul cannot be read", sees(reached(second), func(v *View) { v.WAN.Err = errors.New("no leader") }), outcome{Members: []string{"xivo2"}, Join: []string{"10.0.0.2"}}},
		{"the broker and the database cannot be read", sees(knows(second), reached(second, third), func(v *View) { v.Broker.Err, v.Directory.Err = errors.New("down"), errors.New("down") }),
			outcome{Members: both, Join: []string{"10.0.0.2", "10.0.0.3"}}},
		{"a version that cannot be joined", sees(knows(second), notJoinable), outcome{Members: []string{"xivo2"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view)
			got := outcome{Join: d.Join, NotManaged: d.NotManaged, Unfinished: d.Unfinished}
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
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func suspendedOf(m mesh.Member) mesh.Member { m.Suspended = true; return m }

func TestWhenAMemberWasSeen(t *testing.T) {
	minutes := func(n time.Duration) time.Time { return lookTime.Add(-n * time.Minute) }
	for _, c := range []struct {
		name string
		view *View
		want time.Time
	}{
		{"new, and reached two minutes ago", sees(tells(2*time.Minute, second)), minutes(2)},
		{"new, and never reached: its time begins", sees(silent(second)), lookTime},
		{"known, and reached now", sees(knows(second), reached(second)), lookTime},
		{"known, and not reached since the service was started", sees(knows(second), silent(second)), second.Seen},
		{"known, and the last handshake is older than what the disk has", sees(knows(second), tells(20*time.Minute, second)), second.Seen},
		{"reached without a handshake", sees(knows(second), silent(second), func(v *View) { v.Overlay.Status.Peers[0].Reached = true }), lookTime},
		{"the service does not run", sees(knows(second), overlayDown), second.Seen},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := decide(c.view).Members[0].Seen; !got.Equal(c.want) {
				t.Errorf("seen at %s, want %s", got, c.want)
			}
		})
	}
}

func TestWhetherANodeKeepsOut(t *testing.T) {
	const otherVersion = "192.0.2.1:9484 does not let this node in: it runs another version"
	refused := refuses("192.0.2.1:9484", overlay.OtherVersion, "it runs another version")
	forgotten := refuses("192.0.2.1:9484", overlay.Departed, "it was forgotten")
	for _, c := range []struct {
		name     string
		view     *View
		keepsOut string
		left     bool
		leftAt   time.Time
	}{
		{"it is to be in its mesh", sees(), "", false, time.Time{}},
		{"it was refused", sees(refused), otherVersion, false, time.Time{}},
		{"it was refused by several: one is told", sees(refused, refuses("192.0.2.2:9484", overlay.UUIDTaken, "it is a copy")), otherVersion, false, time.Time{}},
		{"it was refused, and others have let it in", sees(refused, reached(second)), "", false, time.Time{}},
		{"it was refused, and has members that are away", sees(refused, knows(second), silent(second)), "", false, time.Time{}},
		{"it was refused, and learnt of members that it never reached", sees(refused, silent(second)), "", false, time.Time{}},
		{"it was forgotten while it was away", sees(forgotten, knows(second), silent(second)), "192.0.2.1:9484 does not let this node in: it was forgotten", true, time.Time{}},
		{"somebody says that it was forgotten, and it reaches another one", sees(forgotten, knows(second), reached(second)), "", false, time.Time{}},
		{"it left", sees(knows(second), silent(second), leftItself), "this node left at " + leftTime.String(), true, leftTime},
		{"it left, and was refused", sees(refused, leftItself), "this node left at " + leftTime.String(), true, leftTime},
		{"another one left", sees(left(second)), "", false, time.Time{}},
		{"the service does not run", sees(overlayDown), "", false, time.Time{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if d := decide(c.view); d.KeepsOut != c.keepsOut || d.Left != c.left || !d.LeftAt.Equal(c.leftAt) {
				t.Errorf("keeps out for %q, left: %t, at %s; want %q, %t, %s", d.KeepsOut, d.Left, d.LeftAt, c.keepsOut, c.left, c.leftAt)
			} else if d.KeepsOut != "" && len(d.Join) > 0 {
				t.Errorf("it joins %v", d.Join)
			}
		})
	}
}

// The document names the hub as people know it; one document serves all nodes.
func TestWhereTheHubOfTheDocumentLeads(t *testing.T) {
	for named, want := range map[string]string{
		"":           "",
		"10.0.0.1":   self.Address,
		"10.0.0.3":   "10.0.0.3",
		"192.0.2.77": "192.0.2.77",
		"127.0.0.1":  self.Address, // this machine's own
		"localhost":  self.Address, // so is what a name of it leads to
	} {
		t.Run(named, func(t *testing.T) {
			if got, err := hub(t.Context(), sees(func(v *View) { v.Document.Hub = named })); got != want || err != nil {
				t.Errorf("it leads to %q, %v; want %q", got, err, want)
			}
		})
	}
}

func outside(m mesh.Member, addresses ...string) mesh.Member { m.Outside = addresses; return m }

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
		{"a mesh", sees(knows(second), reached(second, third)), []string{"xivo2", "xivo3"}, ""},
		{"a mesh of which nothing is told now", sees(knows(second, third), overlayDown), []string{"xivo2", "xivo3"}, ""},
		{"a mesh of nobody", sees(), nil, ""},
		{"the hub is this node itself", sees(hub(self.Address, nil), knows(second, third)), []string{"xivo2", "xivo3"}, ""},
		{"the hub is a member", sees(hub(third.Address, nil), knows(second, third)), []string{"xivo3"}, ""},
		{"the hub is a member, by an address that it has outside", sees(hub("192.0.2.3", nil), reached(second, outside(third, "192.0.2.3"))), []string{"xivo3"}, ""},
		{"so it is while the service does not run", sees(hub("192.0.2.3", nil), knows(second, outside(third, "192.0.2.3")), overlayDown), []string{"xivo3"}, ""},
		{"the hub's address is that of the router of two", sees(hub("203.0.113.1", nil), reached(outside(second, "203.0.113.1"), outside(third, "203.0.113.1"))), nil, "the hub 203.0.113.1 is not a member of the mesh (yet)"},
		{"the hub is no member yet", sees(hub(fourth.Address, nil), knows(second)), nil, "the hub 10.0.0.4 is not a member of the mesh (yet)"},
		{"the hub's name cannot be resolved", sees(hub("", errName), knows(second)), nil, errName.Error()},
		{"nobody knows that topology", sees(knows(second), func(v *View) { v.Document.Topology = "star" }), nil, "neither mesh, ring nor hub"},
		{"this node left", sees(knows(second), leftItself), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view)
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
	const why = "x does not let this node in: r"
	refused := refuses("x", overlay.OtherVersion, "r")
	namesake := with(second, func(m *mesh.Member) { m.Host = self.Host })
	for _, c := range []struct {
		name   string
		view   *View
		want   []string // a part of each notice
		byHand string   // the member for which an upstream was made by hand
	}{
		{"nothing", sees(knows(second), reached(second)), nil, ""},
		{"what the settings are", sees(func(v *View) { v.Settings = []string{"one", "another"} }), []string{"one", "another"}, ""},

		{"an upstream by hand", sees(knows(second), upstream("b.example", second.Address)), []string{"the upstream site was made by hand for xivo2 (10.0.0.2): it is left as it is, and not doubled"}, second.Address},
		{"an upstream by hand that leads elsewhere", sees(knows(second), upstream("b.example", "192.0.2.1")), nil, ""},
		{"an upstream by hand for a member to which no link is wanted", sees(knows(second, third), upstream("b.example", second.Address), func(v *View) {
			v.Document.Topology, v.Peers.Hub = cloudinit.TopologyHub, third.Address
		}), nil, ""},
		{"an upstream by hand for a member that left", sees(knows(second), left(second), upstream("b.example", second.Address)), nil, ""},
		{"an upstream by hand, by an address that the member has outside", sees(reached(outside(second, "192.0.2.2")), upstream("b.example", "192.0.2.2")), []string{"the upstream site was made by hand for xivo2 (10.0.0.2): it is left as it is, and not doubled"}, second.Address},
		{"the same, while the service does not run", sees(knows(outside(second, "192.0.2.2")), overlayDown, upstream("b.example", "192.0.2.2")), []string{"the upstream site was made by hand for xivo2"}, second.Address},
		{"an upstream by hand that leads to the router of two", sees(reached(outside(second, "203.0.113.1"), outside(third, "203.0.113.1")), upstream("b.example", "203.0.113.1")), nil, ""},
		{"the broker cannot be read", sees(knows(second), func(v *View) { v.Broker.Err = errors.New("down") }), nil, ""},

		{"a directory by hand", sees(knows(second), source(false, second.Address)), []string{"the directory sitea was made by hand for a.example: it is left as it is, and not doubled"}, ""},
		{"a directory of ours", sees(knows(second), source(true, second.Address)), nil, ""},
		{"a directory by hand that leads elsewhere", sees(knows(second), source(false, "192.0.2.1")), nil, ""},
		{"a directory by hand, by an address that the member has outside", sees(reached(outside(second, "192.0.2.2")), source(false, "192.0.2.2")), []string{"the directory sitea was made by hand for a.example"}, ""},
		{"a directory by hand, while the service does not run", sees(knows(second), overlayDown, source(false, second.Address)), []string{"the directory sitea"}, ""},

		{"two nodes have one host name", sees(reached(namesake)), []string{"2 nodes have the host name xivo1: 10.0.0.2 "}, ""},
		{"two have one host name, and cannot be joined", sees(knows(namesake), notJoinable), nil, ""},
		{"what the service has seen of copies", sees(reached(second), func(v *View) { v.Overlay.Status.Alarms = []string{"one of the two is a copy"} }), []string{"one of the two is a copy"}, ""},
		{"one refuses this node, others do not", sees(reached(second), refused), []string{why}, ""},
		{"one refuses it, and its members are away", sees(knows(second), silent(second), refused), []string{why}, ""},
		{"it was refused: that is its state, and no notice", sees(refused), nil, ""},

		{"the WAN still has a node that was refused", sees(refused, leftWAN(why), inWAN(second)), []string{"Consul's WAN still has this node, with xivo2-0123abcd.xivo2-0123abcd:"}, ""},
		{"the WAN still has a node that left", sees(leftItself, leftWAN("this node left at "+leftTime.String()), inWAN(second)), []string{"Consul's WAN still has this node"}, ""},
		{"it has not left the WAN yet", sees(refused, inWAN(second)), nil, ""},
		{"it left the WAN for another reason", sees(refused, leftWAN("y does not let this node in: q"), inWAN(second)), nil, ""},
		{"the WAN has it no more", sees(refused, leftWAN(why)), nil, ""},
		{"it is in its mesh again", sees(leftWAN(why), reached(second), inWAN(second)), nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := decide(c.view)
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

// Deciding does not change the view.
func TestDecidingIsPure(t *testing.T) {
	view := func() *View {
		return sees(knows(third, with(second, func(m *mesh.Member) { m.Seen = lookTime.Add(-time.Hour) }), fourth), reached(outside(third, "192.0.2.3", "192.0.2.1")), silent(second),
			left(fourth), refuses("x", overlay.OtherVersion, "r"), inWAN(second, fourth), func(v *View) { v.Settings = []string{"set"} })
	}
	v := view()
	first := decide(v)
	if diff := cmp.Diff(view(), v, cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("the view changed:\n%s", diff)
	}
	if diff := cmp.Diff(first, decide(v)); diff != "" {
		t.Errorf("it decides otherwise a second time:\n%s", diff)
	}
}

// Whose address is taken draws another, unless it was a member: then it keeps its own.
func TestAnAddressThatIsTaken(t *testing.T) {
	taken := []netip.Addr{netip.MustParseAddr("100.88.0.1"), netip.MustParseAddr("100.88.0.9")}
	refused := func(v *View) {
		refuses("10.0.0.9:9484", overlay.AddressTaken, "has the address of another")(v)
		v.Overlay.Status.Refused["10.0.0.9:9484"].Taken = []netip.Addr{taken[1], taken[0], taken[1]}
	}
	for _, c := range []struct {
		name string
		view *View
		want []netip.Addr
	}{
		{"a newcomer's", sees(refused), taken},
		{"one that knows members", sees(knows(second), refused), nil},
		{"one that has members", sees(tells(0, second), refused), nil},
		{"refused for another reason", sees(refuses("10.0.0.9:9484", overlay.OtherVersion, "runs another version")), nil},
	} {
		if got := decide(c.view).Taken; !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
