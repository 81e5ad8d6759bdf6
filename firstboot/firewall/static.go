package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"regexp"
	"slices"
	"strconv"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// The chains, one a hook. Each is jumped to first, and only takes away: what it does
// not refuse returns to the rules that others made.
const (
	In      = "XIVO-MESH-IN"
	Out     = "XIVO-MESH-OUT"
	Forward = "XIVO-MESH-FWD"
)

// openDoors is an empty chain. It is there where the kernel refused the local doors.
const openDoors = "XIVO-MESH-NO-OWNER"

// Network is the network of the mesh's own.
type Network struct {
	// Interface leads to the members.
	Interface string
	// Range is where the members' addresses are from, where nothing else has one
	// in it: what comes from it or goes to it by another interface is dropped, and
	// so is what comes through the interface and no peer needs. The zero value is
	// for a network that an operator brought: on its interface nothing is closed.
	Range netip.Prefix
}

// Doors are what may be reached nevertheless. The zero value opens nothing.
type Doors struct {
	// Allow are the IPv4 addresses and networks for which xivo-ctid (9495) and the
	// broker's management (15672) are open, by any interface but the mesh's own.
	Allow []string
	// MetadataOpen lets all local users ask the cloud's metadata, which has the
	// user data and with it the mesh's secret. Else it answers root only.
	MetadataOpen bool
	// ConsulUser is the name or number of the user that Consul runs as; "" is
	// "consul". Where there is no such user, root has its door.
	ConsulUser string
}

var (
	// peerTCP and peerUDP are what members ask of each other.
	peerTCP = []int{
		5672, // RabbitMQ
		8300, // Consul's servers
		8302, // its gossip between datacenters
		9483, // the membership
		9486, // xivo-confd
		9495, // xivo-ctid
		9497, // xivo-auth
		9500, // xivo-ctid-ng
	}
	peerUDP = []int{8302, 9483}

	// guardedTCP and guardedUDP are what the mesh opens, or what would open with it,
	// and nobody beside it needs.
	guardedTCP = []int{
		4369, // Erlang's port mapper
		8300, 8301, 8302,
		9483,
		9495,
		15672, // RabbitMQ's management
		25672, // Erlang's distribution
	}
	guardedUDP = []int{8301, 8302, 9483}

	// allowed is what Doors.Allow opens. Consul is not among it.
	allowed = []int{9495, 15672}
)

// Where clouds answer with a machine's user data.
var (
	metadata4 = netip.MustParseAddr("169.254.169.254")
	metadata6 = netip.MustParseAddr("fd00:ec2::254")
)

// fresh matches the first packet of a connection. Answers and what is under way pass
// without conntrack, which would follow every packet of every call: its table fills
// up, and it takes a connection that was there before it for a new one.
const (
	fresh    = "--tcp-flags SYN,ACK SYN"
	underWay = "! " + fresh
)

// Static is the firewall of the mesh's own network, in iptables and ip6tables. No
// member is in it: it is the same while members come and go, and before the network
// is up. Each family is set at once or not at all. It lasts until the next boot.
//
// A kernel that refuses rules by user gets all the others, and a machine without
// ip6tables those of IPv4: that is no error, and Gaps tells it. The one chain that an
// earlier version had is removed.
func Static(n Network, d Doors) engine.Resource {
	s := static{n, d}
	return engine.All{chains{s, &tables{}}, chains{s, &tables{ipv6: true}}}
}

type static struct {
	Network
	Doors
}

// interfaceName is what Linux takes, less "+", which iptables takes for a pattern.
var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.:@-]{1,15}$`)

// hookChain is one of ours. Its rules are as `iptables -S` prints them, without the
// name.
type hookChain struct {
	hook, name string
	rules      []string
}

// rules returns the chains of a family, with or without the local doors.
func (s static) rules(ipv6, doors bool) ([]hookChain, error) {
	if !interfaceName.MatchString(s.Interface) || s.Interface == "lo" {
		return nil, fmt.Errorf("firewall: %q is not the name of a network interface that the mesh could use", s.Interface)
	}
	if s.Range.IsValid() && !s.Range.Addr().Is4() {
		return nil, fmt.Errorf("firewall: the range %s is not IPv4", s.Range)
	}
	in, err := s.in(ipv6)
	if err != nil {
		return nil, err
	}
	out, err := s.out(ipv6, doors)
	if err != nil {
		return nil, err
	}
	return []hookChain{{"INPUT", In, in}, {"OUTPUT", Out, out}, {"FORWARD", Forward, s.forward()}}, nil
}

func (s static) in(ipv6 bool) ([]string, error) {
	rules := []string{"-i lo -j RETURN"}
	own := "-i " + s.Interface + " "
	switch {
	case !s.Range.IsValid():
		rules = append(rules, own+"-j RETURN")
	case ipv6:
		// It carries IPv4 only.
		rules = append(rules, own+"-j DROP")
	default:
		// Linux takes what is addressed to one of its addresses by any interface. What
		// came in fragments is whole again in INPUT.
		in := s.Range.Masked().String()
		rules = append(rules,
			"-d "+in+" ! "+own+"-j DROP",
			"-s "+in+" ! "+own+"-j DROP",
			own+"-p icmp -j RETURN",
			own+"-p tcp -m tcp "+underWay+" -j RETURN",
		)
		for _, port := range peerTCP {
			rules = append(rules, fmt.Sprintf("%s-p tcp -m tcp --dport %d -j RETURN", own, port))
		}
		for _, port := range peerUDP {
			rules = append(rules, fmt.Sprintf("%s-p udp -m udp --dport %d -j RETURN", own, port))
		}
		rules = append(rules, own+"-j DROP")
	}

	// What comes here, came by another interface.
	sources, err := sources(s.Allow)
	if err != nil {
		return nil, err
	}
	if !ipv6 {
		for _, source := range sources {
			for _, port := range allowed {
				rules = append(rules, fmt.Sprintf("%s-p tcp -m tcp --dport %d -j RETURN", source, port))
			}
		}
	}
	for _, port := range guardedTCP {
		rules = append(rules, fmt.Sprintf("-p tcp -m tcp --dport %d -j DROP", port))
	}
	for _, port := range guardedUDP {
		rules = append(rules, fmt.Sprintf("-p udp -m udp --dport %d -j DROP", port))
	}
	return rules, nil
}

// sources returns these addresses and networks as the beginning of a rule, sorted
// and each once.
func sources(allow []string) ([]string, error) {
	var all []netip.Prefix
	for _, text := range allow {
		p, err := netip.ParsePrefix(text)
		if a, bad := netip.ParseAddr(text); bad == nil && a.Zone() == "" {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil || !p.Addr().Is4() {
			return nil, fmt.Errorf("firewall: %q is not an IPv4 address or network", text)
		}
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	var rules []string
	for _, p := range slices.Compact(all) {
		if p.Bits() == 0 {
			rules = append(rules, "") // iptables prints no source for everybody
			continue
		}
		rules = append(rules, "-s "+p.String()+" ")
	}
	return rules, nil
}

func (s static) out(ipv6, doors bool) ([]string, error) {
	var rules []string
	loopback, metadata, reject := "127.0.0.0/8", metadata4, "-j REJECT --reject-with tcp-reset"
	if ipv6 {
		loopback, metadata = "::1/128", metadata6
	}
	// door lets these users only open connections there.
	door := func(where string, port int, users ...int) {
		to := fmt.Sprintf("%s -p tcp -m tcp --dport %d %s ", where, port, fresh)
		for _, u := range users {
			rules = append(rules, fmt.Sprintf("%s-m owner --uid-owner %d -j RETURN", to, u))
		}
		rules = append(rules, to+reject)
	}
	if doors {
		consul, err := uid(s.ConsulUser)
		if err != nil {
			return nil, err
		}
		const root = 0
		cli := []int{root}
		if consul != root {
			cli = append(cli, consul)
		}
		// lo is also the way to every other address of this machine's own.
		door("-o lo", 15672, root)
		door("-o lo", 8400, cli...)
		// Not on loopback: there a Consul of our own listens, as root, for a moment.
		door("! -d "+loopback+" -o lo", 8300, consul)
		// Nobody but Consul has something to say to the others' either.
		door("-o "+s.Interface, 8300, consul)
		if !s.MetadataOpen {
			door("-d "+netip.PrefixFrom(metadata, metadata.BitLen()).String(), 80, root)
		}
	}
	if s.Range.IsValid() && !ipv6 {
		// While the interface is away, passwords would follow the default route.
		rules = append(rules,
			"-o lo -j RETURN",
			"-d "+s.Range.Masked().String()+" ! -o "+s.Interface+" -j DROP",
		)
	}
	return rules, nil
}

func (s static) forward() []string {
	if !s.Range.IsValid() {
		return nil
	}
	return []string{"-i " + s.Interface + " -j DROP", "-o " + s.Interface + " -j DROP"}
}

// uid is the number of Consul's user, and root's where there is none.
func uid(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		return n, nil
	}
	if name == "" {
		name = "consul"
	}
	u, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("firewall: look up the user %s: %w", name, err)
	}
	return strconv.Atoi(u.Uid)
}

// Absent is that nothing of Static, and of what an earlier version had, is in the
// kernel.
func Absent() engine.Resource {
	return engine.All{absent{&tables{}}, absent{&tables{ipv6: true}}}
}

// Gaps says what Static cannot guard on this machine, a sentence each.
func Gaps(ctx context.Context) ([]string, error) {
	var gaps []string
	var errs []error
	for _, t := range []*tables{{}, {ipv6: true}} {
		have, err := t.read(ctx)
		var missing *unavailable
		switch _, refused := have.chains[openDoors]; {
		case errors.As(err, &missing) && t.ipv6:
			if missing.gap != "" {
				gaps = append(gaps, missing.gap)
			}
		case err != nil:
			errs = append(errs, err)
		case refused:
			gaps = append(gaps, fmt.Sprintf("%s: the kernel refuses rules by user: local users reach the broker's management (15672), Consul's RPC (8300, 8400) and the cloud's metadata", t.name()))
		}
	}
	return gaps, errors.Join(errs...)
}
