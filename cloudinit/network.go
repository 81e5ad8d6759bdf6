package cloudinit

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// networkFields are the keys of `network`. Which of them has a meaning depends on
// the mode: network checks that.
func networkFields(r *reader, to *Network) []field {
	return []field{
		{key: "mode", value: r.choice(&to.Mode, NetworkOverlay, NetworkDirect)},
		{key: "range", value: r.rangeOf(&to.Range)},
		{key: "port", value: r.port(&to.Port)},
		{key: "interface", value: r.string(&to.Interface, networkInterface)},
		{key: "shared", value: value{r.bool(&to.Shared).read, func() any {
			if to.Mode != NetworkDirect {
				return nil
			}
			return to.Shared
		}}},
	}
}

// belongsTo is the mode in which a key of `network` has a meaning, and why it has
// none in the other.
var belongsTo = []struct{ key, mode, why string }{
	{"range", NetworkOverlay, "the addresses there are those of the interface"},
	{"interface", NetworkDirect, "it has an interface of its own"},
	{"shared", NetworkDirect, "nobody shares it"},
}

// network reads the mapping, and gives what it leaves out the default of its mode.
func (r *reader) network(to *Network) value {
	return value{read: func(n *yaml.Node, path string) {
		before := len(r.problems)
		mode := to.Mode
		*to = Network{} // until all of it is accepted, nothing follows from it
		var given Network
		seen := r.mapping(n, path, networkFields(r, &given))
		if seen == nil || seen["mode"] != nil && given.Mode == "" {
			return // what the others mean is not known
		}
		full := networkOf(cmp.Or(given.Mode, mode))
		for _, b := range belongsTo {
			at := seen[b.key]
			switch {
			case at == nil || full.Mode == b.mode:
			default:
				r.at(at, path+"."+b.key, "has no meaning in the mode "+full.Mode+": "+b.why, "write `mode: "+b.mode+"`, or remove it")
			}
		}
		if full.Mode == NetworkDirect && seen["interface"] == nil {
			r.at(n, path+".interface", "is missing", "name the interface of the network that the nodes share, for example wg0")
		}
		if len(r.problems) > before {
			return
		}
		full.Range, full.Port = cmp.Or(given.Range, full.Range), cmp.Or(given.Port, full.Port)
		full.Interface, full.Shared = given.Interface, given.Shared
		*to = full
	}}
}

// ownSpace is where nobody's addresses of the Internet lie.
var ownSpace = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
}

func (r *reader) rangeOf(to *netip.Prefix) value {
	var text string
	return value{func(n *yaml.Node, path string) {
		if r.string(&text, networkRange).read(n, path); text != "" {
			*to = netip.MustParsePrefix(text)
		}
	}, func() any {
		if !to.IsValid() {
			return nil
		}
		return to.String()
	}}
}

func networkRange(s string) (string, *fault) {
	const write = "write a network that is used nowhere else, for example 100.88.0.0/16"
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !p.Addr().Is4():
		return "", &fault{quote(s) + " is not an IPv4 network", write}
	case p.Bits() < 8 || p.Bits() > 30:
		return "", &fault{fmt.Sprintf("%s is a /%d", quote(s), p.Bits()), "take one from /8 to /30"}
	case p != p.Masked():
		return "", &fault{quote(s) + " has host bits set", "write " + p.Masked().String()}
	case !slices.ContainsFunc(ownSpace, func(own netip.Prefix) bool { return own.Bits() <= p.Bits() && own.Contains(p.Addr()) }):
		return "", &fault{quote(s) + " is not private or shared address space: its addresses mean something elsewhere",
			"take a part of 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"}
	}
	return s, nil
}

// takenPorts are those on which a XiVO listens, in any version, or a node does: as
// UDP or TCP, since ours is both. docs/xivo/host.md, Ports.
var takenPorts = []struct {
	first, last int
	by          string
}{
	{22, 22, "SSH"}, {25, 25, "mail"}, {53, 53, "DNS"}, {67, 69, "DHCP and TFTP"}, {80, 80, "the web interface"},
	{123, 123, "NTP"}, {443, 443, "the web interface"}, {2000, 2000, "SCCP phones"}, {2812, 2812, "monit"},
	{4369, 4369, "RabbitMQ"}, {4569, 4569, "IAX"}, {5003, 5003, "xivo-ctid"}, {5038, 5039, "Asterisk"},
	{5060, 5061, "SIP"}, {5432, 5432, "PostgreSQL"}, {5672, 5672, "RabbitMQ"},
	{8300, 8302, "Consul"}, {8400, 8400, "Consul"}, {8500, 8500, "Consul"}, {8600, 8600, "Consul"},
	{8666, 8669, "xivo-provd, xivo-sysconfd and xivo-confgend"}, {9483, 9483, "the members of the mesh"},
	{9486, 9502, "XiVO's daemons"}, {15672, 15672, "RabbitMQ"}, {10000, 20000, "calls (RTP)"}, {25672, 25672, "RabbitMQ"},
}

var plainNumber = regexp.MustCompile(`^[0-9]+$`)

func (r *reader) port(to *int) value {
	return value{func(n *yaml.Node, path string) {
		if n.ShortTag() != "!!int" {
			r.wrong(n, path, "write a number from 1 to 65535")
			return
		}
		// What starts with a zero is to base 8 for YAML.
		port, err := strconv.Atoi(n.Value)
		if err != nil || !plainNumber.MatchString(n.Value) || strings.HasPrefix(n.Value, "0") || port > 65535 {
			r.at(n, path, quote(n.Value)+" is not a port", "write a number from 1 to 65535")
			return
		}
		for _, t := range takenPorts {
			if t.first <= port && port <= t.last {
				r.at(n, path, fmt.Sprintf("%d belongs to %s", port, t.by), "take another, or leave it out for 9484")
				return
			}
		}
		*to = port
	}, func() any {
		if *to == 0 {
			return nil
		}
		return *to
	}}
}

// outside refuses addresses, one or a list of them, that lie in the range, if there
// is one.
func (r *reader) outside(in netip.Prefix, n *yaml.Node, path string) {
	if n == nil {
		return
	}
	for i, item := range n.Content {
		r.outside(in, resolve(item), fmt.Sprintf("%s[%d]", path, i))
	}
	if a, err := netip.ParseAddr(n.Value); err == nil && in.Contains(a) {
		r.at(n, path, fmt.Sprintf("%s lies in network.range %s: it is where a node is reached from outside, before it is in the mesh", quote(n.Value), in),
			"write a name or an address that it has outside, or take another range")
	}
}

func metadata(s string) (string, *fault) {
	if s != MetadataOpen {
		return "", &fault{quote(s) + " is not known", "write open, or leave it out"}
	}
	return s, nil
}
