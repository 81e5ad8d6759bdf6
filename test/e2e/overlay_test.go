package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

const (
	// overlayPort is the one port that a node has open to others.
	overlayPort = 9484
	// seconds is what an interruption may take of which "seconds" is promised.
	seconds = 15 * time.Second
)

// Who else is on the link, by the last byte of the address.
const strangerAt, gatewayAt, cloudAt, routerAt = 190, 191, 192, 193

// TestOverlay shows the network of the mesh's own from outside: what passes on the
// link, who is kept out, and what goes on while addresses change and the service dies.
// Each part builds on the ones before, so the first that fails ends it.
func TestOverlay(t *testing.T) {
	needsLab(t)
	t.Parallel()
	o := &overlayMesh{
		mesh:  newMesh(t),
		nodes: map[int]*scenario.Node{}, uuids: map[int]string{}, users: map[int]scenario.User{}, clients: map[int]*scenario.Client{}, at: map[int]netip.Addr{},
	}
	t.Cleanup(func() {
		for _, c := range o.clients {
			c.Close()
		}
	})
	inOrder(t, []part{
		{"a join, a search and a status: nothing in clear passes between nodes, and nothing but the one port", o.nothingInClear},
		{"what it costs at rest, and how soon it is back", o.costs},
		{"the address of one node changes while statuses flow to it", func(t *testing.T) { o.addressesChange(t, []int{1, 3}, 2) }},
		{"the addresses of two nodes of three change at once", func(t *testing.T) { o.addressesChange(t, nil, 2, 3) }},
		{"the service is killed at any moment: nothing is lost, and all connections stand", o.killed},
		{"without the service, Consul starts, and nothing follows the default route", o.withoutService},
		{"a stranger on the link gets no answer in either family, and takes nothing", o.stranger},
		{"a local user who is not root gets none of the doors", o.localUser},
		{"a node behind NAT joins, both ways", o.behindNAT},
		{"a copy of a member is refused and told with both names, and the member stays", o.copied},
		{"two that are left find each other again after one was off while the other was booted", o.twoFindEachOther},
	})
}

// overlayMesh is what the parts of TestOverlay hand on to each other.
type overlayMesh struct {
	mesh    *scenario.Mesh
	nodes   map[int]*scenario.Node
	uuids   map[int]string
	users   map[int]scenario.User
	clients map[int]*scenario.Client
	// at is the overlay address of each node.
	at    map[int]netip.Addr
	flows int
}

func (o *overlayMesh) numbers() []int { return slices.Sorted(maps.Keys(o.nodes)) }

// others are those of the nodes that a client is connected to, but for one.
func (o *overlayMesh) others(n int) []int {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(o.clients)), func(other int) bool { return other == n })
}

// settle waits until these nodes are joined with all of them, and logs a person in on
// each of those that have none yet.
func (o *overlayMesh) settle(t *testing.T, numbers ...int) {
	t.Helper()
	since := time.Now()
	group, ctx := errgroup.WithContext(deadline(t, lab.Hang))
	for _, n := range numbers {
		group.Go(func() error {
			_, err := o.nodes[n].WaitJoined(ctx, len(numbers)-1, since)
			return errors.Join(err, o.nodes[n].WaitRunning(ctx))
		})
	}
	must(t, group.Wait())
	for _, n := range numbers {
		if o.clients[n] == nil {
			o.person(t, n)
		}
	}
}

// person puts a user with a long number on a node, and logs the user in.
func (o *overlayMesh) person(t *testing.T, n int) {
	t.Helper()
	node := o.nodes[n]
	var err error
	o.uuids[n], err = node.UUID(t.Context())
	must(t, err)
	s := overlayStatus(t, node)
	o.at[n] = s.Self.Addr
	o.users[n], err = node.AddUser(t.Context(), fmt.Sprint("Firstname", n))
	must(t, err)
	_, err = node.SQL(t.Context(), "UPDATE userfeatures SET exten = :'a1' WHERE id = :'a2'", number(n), strconv.Itoa(o.users[n].ID))
	must(t, err)
	o.clients[n], err = node.Connect(t.Context())
	must(t, err)
}

func number(n int) string { return fmt.Sprintf("0493055500%02d", n) }

// ownStatus is what the service of the overlay tells on its socket, as far as anybody
// here asks.
type ownStatus struct {
	Self      struct{ Addr netip.Addr }
	Strangers int
	Alarms    []string
}

func overlayStatus(t *testing.T, n *scenario.Node) (s ownStatus) {
	t.Helper()
	must(t, json.Unmarshal([]byte(runIn(t, n, "curl -sSf --unix-socket /run/xivo-firstboot/overlay.sock http://overlay/status")), &s))
	return s
}

// flow lets the users of these nodes, or of all, change status each 100 ms, from before
// do begins until every other node was told some that were set after it ended. Each
// change that was acknowledged must come to every other node, in order, and the time in
// which nothing came from one to another be at most seconds.
func (o *overlayMesh) flow(t *testing.T, do func(), senders ...int) {
	t.Helper()
	o.flows++
	prefix := fmt.Sprintf("flow-%d-", o.flows)
	if senders == nil {
		senders = slices.Sorted(maps.Keys(o.clients))
	}
	for _, from := range senders {
		for _, to := range o.others(from) {
			must(t, o.clients[to].Watch(o.uuids[from], o.users[from].ID))
		}
	}
	// arrived is what came from one to another in this flow.
	arrived := func(from, to int) []scenario.Told {
		return slices.DeleteFunc(o.clients[to].Told(), func(s scenario.Told) bool {
			return s.XiVO != o.uuids[from] || s.User != o.users[from].ID || !strings.HasPrefix(s.Status, prefix)
		})
	}
	var mu sync.Mutex
	sent := map[int]int{} // how many, by sender
	// everywhere waits until every other node was told so many that are not set yet.
	everywhere := func(more int) {
		t.Helper()
		mu.Lock()
		now := maps.Clone(sent)
		mu.Unlock()
		for _, from := range senders {
			for _, to := range o.others(from) {
				must(t, lab.Wait(deadline(t, lab.Hang), fmt.Sprintf("a status to come from node %d to node %d", from, to), func(context.Context) (bool, error) {
					s := arrived(from, to)
					if len(s) == 0 {
						return false, nil
					}
					i, err := strconv.Atoi(strings.TrimPrefix(s[len(s)-1].Status, prefix))
					return i >= now[from]+more, err
				}))
			}
		}
	}

	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	defer end()
	var sending errgroup.Group
	for _, n := range senders {
		sending.Go(func() error {
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for i := 0; ; i++ {
				if err := o.clients[n].SetStatus(o.users[n].ID, prefix+strconv.Itoa(i)); err != nil {
					return err
				}
				mu.Lock()
				sent[n] = i
				mu.Unlock()
				select {
				case <-ended:
					return nil
				case <-tick.C:
				}
			}
		})
	}
	everywhere(0)
	begun := time.Now()
	if do != nil {
		do()
		everywhere(20)
	}
	end()
	must(t, sending.Wait())

	for _, from := range senders {
		last := prefix + strconv.Itoa(sent[from])
		must(t, o.clients[from].Sees(deadline(t, lab.Hang), "", o.users[from].ID, last))
		var acknowledged []string
		for _, s := range o.clients[from].Told() {
			if s.XiVO == "" && strings.HasPrefix(s.Status, prefix) {
				acknowledged = append(acknowledged, s.Status)
			}
		}
		for _, to := range o.others(from) {
			must(t, o.clients[to].Sees(deadline(t, lab.Hang), o.uuids[from], o.users[from].ID, last))
			var came []string
			var gap time.Duration
			before := begun
			for _, s := range arrived(from, to) {
				if !slices.Contains(came, s.Status) { // one that was told twice is not lost
					came = append(came, s.Status)
				}
				if s.At.After(begun) {
					gap, before = max(gap, s.At.Sub(before)), s.At
				}
			}
			// The ones before the watch was set up are fetched, not told.
			if i := slices.Index(acknowledged, came[0]); i < 0 || !slices.Equal(acknowledged[i:], came) {
				t.Errorf("node %d acknowledged %d statuses, and %d came to node %d (-acknowledged +came):\n%s", from, len(acknowledged), len(came), to, cmp.Diff(acknowledged, came))
			}
			if do != nil {
				t.Logf("node %d to node %d: %d statuses, at most %s apart", from, to, len(came), gap.Round(time.Millisecond))
			}
			if gap > seconds {
				t.Errorf("nothing came from node %d to node %d for %s", from, to, gap)
			}
		}
	}
}

// lasting is what no change of the network may end: the processes, and the broker's
// connections to other nodes. but names services that may be started again.
func (o *overlayMesh) lasting(t *testing.T, but ...string) map[string]string {
	t.Helper()
	shown := map[string]string{}
	for n, node := range o.nodes {
		for _, unit := range []string{"consul", "rabbitmq-server", "postgresql", "xivo-confd", "xivo-dird", "xivo-ctid", "xivo-mesh", "xivo-overlay"} {
			if !slices.Contains(but, unit) {
				shown[fmt.Sprintf("%s of node %d", unit, n)] = runIn(t, node, "systemctl show --property=MainPID,ActiveEnterTimestampMonotonic "+unit)
			}
		}
		shown[fmt.Sprintf("connections of node %d", n)] = runIn(t, node, "ss -Htn state established '( dport = :5672 and dst != 127.0.0.0/8 )' | awk '{print $3, $4}' | sort")
	}
	return shown
}

func lasted(t *testing.T, before, after map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("what should have lasted (-before +after):\n%s", diff)
	}
}

// nothingInClear listens on the link while nodes join, and inside of one for what it
// looks for: what is there in clear inside, is not on the link.
func (o *overlayMesh) nothingInClear(t *testing.T) {
	link, err := o.mesh.Lab.Net().Capture()
	must(t, err)
	for n := 1; n <= 3; n++ {
		o.nodes[n], err = o.mesh.Boot(t.Context(), n)
		must(t, err)
		o.nodes[n].Inside = true
	}
	o.settle(t, 1, 2, 3)
	inside, err := o.nodes[2].Net().Capture()
	must(t, err)
	for _, on := range o.numbers() {
		for _, of := range o.others(on) {
			must(t, o.nodes[on].Finds(deadline(t, lab.Hang), o.users[of], o.uuids[of]))
		}
	}
	o.flow(t, nil)

	secrets := o.secrets(t)
	for _, text := range secrets {
		// As something of ours would tell it in clear.
		c, err := o.nodes[1].Net().Dial(deadline(t, lab.Hang), "tcp", netip.AddrPortFrom(o.at[2], 9495).String())
		must(t, err)
		_, err = io.WriteString(c, text)
		must(t, errors.Join(err, c.Close()))
	}
	// Those came by when this does.
	o.flow(t, nil)

	within, err := inside.Stop()
	must(t, err)
	onLink, err := link.Stop()
	must(t, err)
	contains := func(frames []lab.Frame, tunnel bool, text string) bool {
		return slices.ContainsFunc(frames, func(f lab.Frame) bool { return f.Tunnel == tunnel && bytes.Contains(f.Packet, []byte(text)) })
	}
	for what, text := range secrets {
		if !contains(within, true, text) {
			t.Errorf("the search does not find %s inside, where it went in clear", what)
		}
		if contains(onLink, false, text) {
			t.Errorf("%s passed on the link in clear", what)
		}
	}
	passed := map[string]int{}
	for _, f := range onLink {
		passed[kind(f)]++
	}
	t.Logf("%d frames on the link, of %d secrets none in clear: %v", len(onLink), len(secrets), passed)
	for k := range passed {
		if !slices.Contains([]string{"ARP", "ICMP", "ICMPv6", "IGMP", "UDP 9484", "TCP 9484", "UDP 67"}, k) {
			t.Errorf("%d times %s passed between nodes", passed[k], k)
		}
	}
	for _, want := range []string{"UDP 9484", "TCP 9484"} {
		if passed[want] == 0 {
			t.Errorf("no %s passed: what was listened to was not the link", want)
		}
	}
}

// kind is what a frame carries: the protocol, and where that has ports, the smaller one.
func kind(f lab.Frame) string {
	p := f.Packet
	var proto byte
	switch {
	case f.Type == 0x0806:
		return "ARP"
	case f.Type == 0x0800 && len(p) >= 20:
		proto, p = p[9], p[min(len(p), int(p[0]&15)*4):]
	case f.Type == 0x86dd && len(p) >= 40:
		proto, p = p[6], p[40:]
		if proto == 0 && len(p) >= 8 { // options before it
			proto, p = p[0], p[min(len(p), 8+int(p[1])*8):]
		}
	default:
		return fmt.Sprintf("type %04x", f.Type)
	}
	switch names := map[byte]string{6: "TCP", 17: "UDP"}; {
	case proto == 1:
		return "ICMP"
	case proto == 2:
		return "IGMP"
	case proto == 58:
		return "ICMPv6"
	case names[proto] != "" && len(p) >= 4:
		from, to := binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:])
		return fmt.Sprintf("%s %d", names[proto], min(from, to))
	}
	return fmt.Sprintf("protocol %d", proto)
}

// secrets are names, numbers, passwords, tokens and UUIDs of all nodes, by what they
// are. Each is long enough to appear in nothing by chance.
func (o *overlayMesh) secrets(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"the mesh's secret": o.mesh.Secret, "a status": fmt.Sprintf("flow-%d-", o.flows)}
	for n, node := range o.nodes {
		add := func(what, text string) {
			t.Helper()
			if len(text) < 6 {
				t.Errorf("%s of node %d is %q: too short to be looked for", what, n, text)
			}
			all[fmt.Sprintf("%s of node %d", what, n)] = text
		}
		add("the first name", o.users[n].Firstname)
		add("the last name", o.users[n].Lastname)
		add("the number", number(n))
		id := uuid.MustParse(o.uuids[n])
		add("the UUID", id.String())
		add("the UUID without dashes", hex.EncodeToString(id[:]))
		add("the UUID in bytes", string(id[:]))
		add("Consul's master token", runIn(t, node, "cat /var/lib/consul/master_token"))
		add("Consul's gossip key", runIn(t, node, `sed -n 's/.*"encrypt": "\(.*\)".*/\1/p' /etc/consul/xivo/interconnection.json`))
		add("the broker's password", runIn(t, node, `curl -sSf -u guest:guest http://127.0.0.1:15672/api/parameters/federation-upstream | sed 's!.*amqp://[^:]*:\([^@]*\)@.*!\1!'`))
		password, err := node.SQL(t.Context(), "SELECT passwd FROM accesswebservice WHERE name LIKE 'xivo-mesh-%'")
		must(t, err)
		add("xivo-confd's password", password)
	}
	return all
}

// costs are measured, and bounded by what is promised.
func (o *overlayMesh) costs(t *testing.T) {
	node := o.nodes[1]
	memory := resident(t, node, "xivo-overlay") + resident(t, node, "xivo-mesh")
	size, err := strconv.Atoi(runIn(t, node, "stat --format=%s /usr/sbin/xivo-firstboot"))
	must(t, err)
	link, err := o.mesh.Lab.Net().Capture()
	must(t, err)
	before := time.Now()
	runIn(t, node, "systemctl restart xivo-overlay")
	o.flow(t, nil)
	frames, err := link.Stop()
	must(t, err)
	own := node.Address.As4()
	first := slices.IndexFunc(frames, func(f lab.Frame) bool {
		return !f.Sent && kind(f) == "UDP 9484" && bytes.Equal(f.Packet[12:16], own[:]) && f.At.After(before)
	})
	if first < 0 {
		t.Fatal("no packet came from it")
	}
	took := frames[first].At.Sub(before)
	t.Logf("xivo-overlay and xivo-mesh: %d KiB resident; the binary: %d KiB; a restart to the first packet: %s", memory>>10, size>>10, took.Round(time.Millisecond))
	if memory > 60<<20 || size > 20<<20 || took > seconds {
		t.Error("that is more than 60 MiB, 20 MiB, or seconds")
	}
}

// resident is the memory of a service's main process, in bytes.
func resident(t *testing.T, n *scenario.Node, unit string) int {
	t.Helper()
	kib, err := strconv.Atoi(runIn(t, n, fmt.Sprintf("sed -n 's/VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$(systemctl show --value --property=MainPID %s)/status", unit)))
	must(t, err)
	return kib << 10
}

// addressesChange gives nodes new addresses as a DHCP client does, at once, and the
// lease's route, while the users of the senders change status.
func (o *overlayMesh) addressesChange(t *testing.T, senders []int, numbers ...int) {
	before := o.lasting(t)
	o.flow(t, func() {
		var moves errgroup.Group
		for _, n := range numbers {
			node := o.nodes[n]
			was := node.Address
			a := was.As4()
			a[3] += 40
			node.Address = netip.AddrFrom4(a)
			moves.Go(func() error {
				_, err := node.Run(t.Context(), "sh", "-ec", fmt.Sprintf("ip addr del %s/24 dev eth0; ip addr add %s/24 dev eth0; ip route add default via %s dev eth0", was, node.Address, lab.HostAddress))
				return err
			})
		}
		must(t, moves.Wait())
	}, senders...)
	lasted(t, before, o.lasting(t))
}

// killed ends the service of one node after the other, at moments that nobody chose.
func (o *overlayMesh) killed(t *testing.T) {
	before := o.lasting(t, "xivo-overlay")
	const main = "systemctl show --value --property=MainPID xivo-overlay"
	o.flow(t, func() {
		for range 6 {
			n := 1 + rand.IntN(3)
			time.Sleep(rand.N(time.Second)) // the moment
			was := runIn(t, o.nodes[n], main)
			runIn(t, o.nodes[n], "kill -KILL "+was)
			must(t, lab.Wait(deadline(t, lab.Hang), "the service to be started again", func(context.Context) (bool, error) {
				is := runIn(t, o.nodes[n], main)
				return is != was && is != "0", nil
			}))
		}
	})
	lasted(t, before, o.lasting(t, "xivo-overlay"))
}

// withoutService stops the service of node 2, whose default gateway answers for the
// addresses of members.
func (o *overlayMesh) withoutService(t *testing.T) {
	node := o.nodes[2]
	gateway, err := o.mesh.Lab.Neighbour(t.Context(), "gateway", netip.PrefixFrom(scenario.Address(gatewayAt), lab.Network.Bits()))
	must(t, err)
	const elsewhere = "198.51.100.9"
	for _, a := range []string{o.at[1].String(), o.at[3].String(), elsewhere} {
		must(t, gateway.IP(t.Context(), "address", "add", a+"/32", "dev", "lo"))
	}
	seen, err := gateway.Capture()
	must(t, err)
	runIn(t, node, "ip route replace default via "+scenario.Address(gatewayAt).String()+" dev eth0; systemctl stop xivo-mesh xivo-overlay")

	runIn(t, node, "systemctl restart consul")
	must(t, lab.Wait(deadline(t, lab.Hang), "Consul to have a leader", func(ctx context.Context) (bool, error) {
		out, err := node.Run(ctx, "curl", "-ksSf", "https://127.0.0.1:8500/v1/status/leader")
		return err == nil && strings.Contains(out, ":8300"), err
	}))
	telephonyRuns(t, node)
	for _, n := range []int{1, 3} {
		if got := reach(t, node.Net(), netip.AddrPortFrom(o.at[n], 5672), netip.AddrPortFrom(o.at[n], 9483)); got != nil {
			t.Errorf("without its service, node 2 reaches %v", got)
		}
		if c, err := node.Net().Dial(t.Context(), "udp", netip.AddrPortFrom(o.at[n], 9483).String()); err == nil {
			io.WriteString(c, "gossip")
			c.Close()
		}
	}
	// And what does follow the default route is seen.
	if c, err := node.Net().Dial(t.Context(), "udp", elsewhere+":9"); err == nil {
		io.WriteString(c, "control")
		c.Close()
	}
	frames, err := seen.Stop()
	must(t, err)
	to := map[netip.Addr]int{}
	for _, f := range frames {
		if f.Type == 0x0800 && !f.Sent {
			a, _ := netip.AddrFromSlice(f.Packet[16:20])
			to[a]++
		}
	}
	if to[netip.MustParseAddr(elsewhere)] == 0 {
		t.Errorf("the gateway is none: it saw %v", to)
	}
	for _, n := range []int{1, 3} {
		if to[o.at[n]] > 0 {
			t.Errorf("%d packets to node %d followed the default route", to[o.at[n]], n)
		}
	}
	// Nor does Consul need our own record of the address to start: its file has it.
	runIn(t, node, `cd /var/lib/xivo-firstboot/mesh; mv address.json /root/; systemctl stop consul
ip address del `+o.at[2].String()+`/32 dev lo; systemctl restart xivo-overlay-address consul; mv /root/address.json .`)
	if has := runIn(t, node, "ip -o -4 address show dev lo"); !strings.Contains(has, o.at[2].String()+"/32") {
		t.Errorf("without our record of the address, lo has %s", has)
	}
	runIn(t, node, fmt.Sprintf("ip route replace default via %s dev eth0; systemctl start xivo-overlay xivo-mesh", lab.HostAddress))
	o.settle(t, 1, 2, 3)
	o.flow(t, nil)
}

// reach returns those of the endpoints that take a connection from a network.
func reach(t *testing.T, from lab.Net, to ...netip.AddrPort) (open []netip.AddrPort) {
	t.Helper()
	var mu sync.Mutex
	var all errgroup.Group
	for _, at := range to {
		all.Go(func() error {
			// Nobody answers a stranger later than at once.
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
			defer cancel()
			c, err := from.Dial(ctx, "tcp", at.String())
			if err != nil {
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			open = append(open, at)
			return c.Close()
		})
	}
	must(t, all.Wait())
	slices.SortFunc(open, netip.AddrPort.Compare)
	return open
}

func endpoints(a netip.Addr, ports ...uint16) (all []netip.AddrPort) {
	for _, p := range ports {
		all = append(all, netip.AddrPortFrom(a, p))
	}
	return all
}

// guarded are the ports that answer nobody on the LAN, open what a XiVO has open there.
var (
	guarded  = []uint16{4369, 8300, 8301, 8302, 8400, 8500, 9483, 9495, 15672, 25672}
	openPort = []uint16{22, 5003, 5672, 9484, 9486, 9489}
)

// stranger tries all of node 1's ports from the link: at its address there, at its
// overlay address with a route over the link, and in IPv6.
func (o *overlayMesh) stranger(t *testing.T) {
	node := o.nodes[1]
	stranger, err := o.mesh.Lab.Neighbour(t.Context(), "stranger", netip.PrefixFrom(scenario.Address(strangerAt), lab.Network.Bits()))
	must(t, err)
	must(t, stranger.IP(t.Context(), "route", "add", "100.88.0.0/16", "via", node.Address.String()))
	six := linkLocal(t, stranger, node)
	lan := node.Address

	if diff := cmp.Diff(endpoints(lan, openPort...), reach(t, stranger.Net, slices.Concat(endpoints(lan, guarded...), endpoints(lan, openPort...))...), compareAddrPort); diff != "" {
		t.Errorf("what a stranger reaches on the LAN (-want +got):\n%s", diff)
	}
	if got := reach(t, stranger.Net, endpoints(o.at[1], slices.Concat(guarded, openPort)...)...); got != nil {
		t.Errorf("a stranger who routes to the overlay address over the link reaches %v", got)
	}
	// What listens in both families: SSH, and the hello.
	if diff := cmp.Diff(endpoints(six, 22, 9484), reach(t, stranger.Net, endpoints(six, slices.Concat(guarded, openPort)...)...), compareAddrPort); diff != "" {
		t.Errorf("what a stranger reaches in IPv6 (-want +got):\n%s", diff)
	}

	var used []int
	before := overlayStatus(t, node).Strangers
	o.flow(t, func() {
		for range 2 { // at first, all that is kept for use again comes into being
			if got := o.junk(t, stranger, lan, six); got != 0 {
				t.Errorf("a stranger got %d bytes", got)
			}
			used = append(used, resident(t, node, "xivo-overlay"))
		}
	})
	t.Logf("xivo-overlay: %d KiB after a stranger's junk, %d KiB after as much again", used[0]>>10, used[1]>>10)
	if grown := used[1] - used[0]; grown > 8<<20 {
		t.Errorf("a stranger took %d KiB", grown>>10)
	}
	if got := overlayStatus(t, node).Strangers - before; got < 100 {
		t.Errorf("the service counted %d strangers: they were not there", got)
	}
	s, err := node.Status(t.Context())
	must(t, err)
	if len(s.Peers) != 2 || s.State != "joined" {
		t.Errorf("node 1 is %s with %d peers", s.State, len(s.Peers))
	}
}

var compareAddrPort = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// linkLocal is a node's IPv6 address on the link, as a neighbour writes it.
func linkLocal(t *testing.T, from *lab.Neighbour, n *scenario.Node) netip.Addr {
	t.Helper()
	address := runIn(t, n, "ip -6 -o addr show dev eth0 scope link | sed 's!.*inet6 \\([^/]*\\)/.*!\\1!'")
	index, err := from.Run(t.Context(), "ip", "-o", "link", "show", "dev", "eth0")
	must(t, err)
	index, _, _ = strings.Cut(index, ":")
	a, err := netip.ParseAddr(address + "%" + index)
	must(t, err)
	// Its own address is one that nobody else has when that was looked at.
	must(t, lab.Wait(deadline(t, lab.Hang), "the neighbour to have an address of IPv6", func(ctx context.Context) (bool, error) {
		out, err := from.Run(ctx, "ip", "-6", "-o", "addr", "show", "dev", "eth0")
		return err == nil && out != "" && !strings.Contains(out, "tentative"), err
	}))
	return a
}

// junk sends what a stranger can think of to the one port and to the gossips, and
// returns how many bytes came back.
func (o *overlayMesh) junk(t *testing.T, stranger *lab.Neighbour, at ...netip.Addr) (got int64) {
	t.Helper()
	long := strings.Repeat("x", 60_000)
	for _, a := range at {
		var senders errgroup.Group
		var mu sync.Mutex
		for range 2 {
			for _, text := range []string{long, "\x00\x30" + long[:48], "GET / HTTP/1.0\r\n\r\n", "\x16\x03\x01\x02\x00\x01", "\x00\x30short", long, long, long} {
				for range 2 {
					senders.Go(func() error {
						c, err := stranger.Dial(deadline(t, lab.Hang), "tcp", netip.AddrPortFrom(a, overlayPort).String())
						if err != nil {
							return err
						}
						defer c.Close()
						c.SetDeadline(time.Now().Add(lab.Hang))
						go io.WriteString(c, text)
						n, _ := io.Copy(io.Discard, c)
						mu.Lock()
						defer mu.Unlock()
						got += n
						return nil
					})
				}
			}
		}
		must(t, senders.Wait())
		for _, port := range []uint16{overlayPort, 8301, 8302, 9483} {
			c, err := stranger.Dial(t.Context(), "udp", netip.AddrPortFrom(a, port).String())
			must(t, err)
			// The four kinds of WireGuard's messages in their lengths, and none.
			for kind, size := range map[byte]int{1: 148, 2: 92, 3: 64, 4: 96, 5: 1200, 0: 1} {
				message := make([]byte, size)
				message[0] = kind
				for range 50 {
					c.Write(message)
				}
			}
			c.SetReadDeadline(time.Now().Add(time.Second)) // what comes, comes by then
			n, err := c.Read(make([]byte, 2000))
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("UDP %d of %s answers: %v", port, a, err)
			}
			got += int64(n)
			c.Close()
		}
	}
	return got
}

// localUser tries the doors of node 2 as root, as Consul and as nobody.
func (o *overlayMesh) localUser(t *testing.T) {
	node := o.nodes[2]
	cloud, err := o.mesh.Lab.Neighbour(t.Context(), "cloud", netip.PrefixFrom(scenario.Address(cloudAt), lab.Network.Bits()))
	must(t, err)
	must(t, cloud.IP(t.Context(), "address", "add", "169.254.169.254/32", "dev", "lo"))
	runIn(t, node, "ip route add 169.254.169.254 via "+scenario.Address(cloudAt).String())
	for from, at := range map[lab.Net]string{cloud.Net: "169.254.169.254:80", node.Net(): "127.0.0.1:8400"} {
		l, err := from.Listen(at)
		must(t, err)
		defer l.Close()
	}
	own := o.at[2].String()
	doors := []string{"127.0.0.1/15672", "127.0.0.1/8400", own + "/8300", o.at[1].String() + "/8300", "169.254.169.254/80", "127.0.0.1/8500", "127.0.0.1/5672"}
	open := map[string]map[string]bool{}
	for _, user := range []string{"root", "consul", "nobody"} {
		open[user] = map[string]bool{}
		for _, door := range doors {
			_, err := node.Run(t.Context(), "setpriv", "--reuid="+user, "--regid=nogroup", "--clear-groups", "timeout", "5", "bash", "-c", "exec 3<>/dev/tcp/"+door)
			open[user][door] = err == nil
		}
	}
	want := map[string]map[string]bool{
		"root":   {doors[0]: true, doors[1]: true, doors[2]: false, doors[3]: false, doors[4]: true, doors[5]: true, doors[6]: true},
		"consul": {doors[0]: false, doors[1]: true, doors[2]: true, doors[3]: true, doors[4]: false, doors[5]: true, doors[6]: true},
		"nobody": {doors[0]: false, doors[1]: false, doors[2]: false, doors[3]: false, doors[4]: false, doors[5]: true, doors[6]: true},
	}
	if diff := cmp.Diff(want, open); diff != "" {
		t.Errorf("who gets through which door (-want +got):\n%s", diff)
	}
	runIn(t, node, "ip route del 169.254.169.254")
}

// behindNAT boots node 4 behind a router that hides it.
func (o *overlayMesh) behindNAT(t *testing.T) {
	router, err := o.mesh.Lab.Neighbour(t.Context(), "router", netip.PrefixFrom(scenario.Address(routerAt), lab.Network.Bits()))
	must(t, err)
	must(t, router.Masquerade(t.Context()))
	link, err := o.mesh.Lab.Net().Capture()
	must(t, err)
	gateway, address := netip.MustParseAddr("192.168.9.1"), netip.MustParseAddr("192.168.9.2")
	o.nodes[4], err = o.mesh.BootBehind(t.Context(), 4, router, gateway, address)
	must(t, err)
	must(t, router.IP(t.Context(), "address", "add", gateway.String()+"/24", "dev", o.nodes[4].Name))
	o.settle(t, 1, 2, 3, 4)
	for _, n := range o.others(4) {
		must(t, errors.Join(
			o.nodes[4].Finds(deadline(t, lab.Hang), o.users[n], o.uuids[n]),
			o.nodes[n].Finds(deadline(t, lab.Hang), o.users[4], o.uuids[4])))
	}
	o.flow(t, nil)
	frames, err := link.Stop()
	must(t, err)
	from := map[netip.Addr]int{}
	for _, f := range frames {
		if f.Type == 0x0800 {
			a, _ := netip.AddrFromSlice(f.Packet[12:16])
			from[a]++
		}
	}
	if from[address] > 0 || from[scenario.Address(routerAt)] == 0 {
		t.Errorf("the router hides nobody: %v", from)
	}
}

// copied boots node 5 with the disk of node 3, and nothing tells it that it is a copy,
// but that its key is another one, as in an image from which it was taken out.
func (o *overlayMesh) copied(t *testing.T) {
	o.clients[3].Close()
	delete(o.clients, 3)
	must(t, o.nodes[3].Poweroff(deadline(t, lab.Hang)))
	twin, err := o.mesh.BootTwin(t.Context(), 5, o.nodes[3])
	must(t, err)
	must(t, twin.Unplug(t.Context()))
	must(t, o.nodes[3].PowerOn(t.Context()))
	o.nodes[3].Address = scenario.Address(3)
	must(t, twin.WaitRunning(deadline(t, lab.Hang)))
	runIn(t, twin, fmt.Sprintf(`umask 077; head -c 32 /dev/urandom | base64 >/var/lib/xivo-firstboot/mesh/wg.key; systemctl restart xivo-overlay
ip addr flush dev eth0 scope global; ip addr add %s/24 dev eth0`, twin.Address))
	must(t, twin.Plug(t.Context()))
	named := func(s scenario.Status) bool {
		return anyHas(append(s.Notices, s.Why), "node3", o.uuids[3], "has the UUID of node3")
	}
	s := waitStatus(t, twin, "that it is refused", func(s scenario.Status) bool { return s.State != "joined" && named(s) })
	t.Logf("the copy is %s: %s", s.State, s.Why)
	waitStatus(t, o.nodes[1], "that there is a copy", named)
	telephonyRuns(t, twin)
	o.settle(t, 1, 2, 3, 4)
	o.flow(t, nil)
	twin.Cut()
}

// twoFindEachOther leaves only nodes 1 and 2.
func (o *overlayMesh) twoFindEachOther(t *testing.T) {
	for _, n := range []int{3, 4} {
		o.clients[n].Close()
		o.nodes[n].Cut()
		delete(o.clients, n)
		delete(o.nodes, n)
	}
	for _, n := range []int{1, 2} {
		o.clients[n].Close()
		must(t, o.nodes[n].Poweroff(deadline(t, lab.Hang)))
	}
	must(t, o.nodes[2].PowerOn(t.Context()))
	must(t, o.nodes[2].WaitRunning(deadline(t, lab.Hang)))
	telephonyRuns(t, o.nodes[2])
	must(t, o.nodes[1].PowerOn(t.Context()))
	for _, n := range []int{1, 2} {
		waitStatus(t, o.nodes[n], "that the other answers", func(s scenario.Status) bool {
			return s.At.After(o.nodes[1].Booted) && s.Answered(o.uuids[3-n])
		})
		must(t, o.nodes[n].WaitRunning(deadline(t, lab.Hang)))
	}
	for _, n := range []int{1, 2} {
		var err error
		o.clients[n], err = o.nodes[n].Connect(t.Context())
		must(t, err)
	}
	o.flow(t, nil)
}
