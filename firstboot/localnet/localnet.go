// Package localnet wraps what the kernel and the resolver's file say of this
// machine's IPv4 network: addresses, routes, gateways, name servers.
package localnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Outside is an address that must be reached outside the mesh's own network.
type Outside struct {
	Address netip.Addr
	// What has it, for a person: "the peer xivo-lyon".
	What string
}

// RangeFree is an error if this machine uses a range of IPv4 addresses for anything
// but the mesh: it names all that lies there. Of the mesh are what the interface own
// has, single addresses of the loopback interface, and the route by which the whole
// range is unreachable.
//
// A route that takes the range and more counts if its addresses are neighbours on a
// link: one of them may be in use, and would be reached no more. If it leads to a
// gateway, like the default route, it says only where to send what nobody else
// takes, and does not count; neither does one by which they are unreachable.
func RangeFree(in netip.Prefix, own string, outside ...Outside) error {
	in = in.Masked()
	if !in.IsValid() || !in.Addr().Is4() {
		return fmt.Errorf("localnet: %s is not an IPv4 network", in)
	}
	m, err := read(own)
	if err != nil {
		return fmt.Errorf("localnet: find out whether network.range %s is free: %w", in, err)
	}
	uses := slices.Concat(m.addressesIn(in), m.routesIn(in), m.gatewaysIn(in))
	for _, o := range slices.Concat(m.nameServers, outside) {
		if in.Contains(o.Address.Unmap()) {
			uses = append(uses, fmt.Sprintf("%s has the address %s", o.What, o.Address.Unmap()))
		}
	}
	if len(uses) == 0 {
		return nil
	}
	slices.Sort(uses)
	return fmt.Errorf("network.range %s is in use here: %s; set `network.range` to a network that no node uses, the same on all nodes",
		in, strings.Join(slices.Compact(uses), "; "))
}

// DefaultRoute says whether an interface has a default route of IPv4 in the main table:
// what nobody else takes goes there. One in another table is that of a VPN which takes
// over all traffic, and says nothing of who is behind it.
func DefaultRoute(dev string) (bool, error) {
	m, err := read("")
	if err != nil {
		return false, fmt.Errorf("localnet: find out whether %s has the default route: %w", dev, err)
	}
	return slices.ContainsFunc(m.routes, func(r route) bool {
		return r.to.Bits() == 0 && r.table == unix.RT_TABLE_MAIN &&
			slices.ContainsFunc(r.hops, func(h hop) bool { return m.names[h.dev] == dev })
	}), nil
}

// machine is what uses addresses on this machine, without what is the mesh's.
type machine struct {
	names       map[int]string // of interfaces, by index
	addresses   []address
	routes      []route
	nameServers []Outside
}

// address is one with the network that it is in.
type address struct {
	netip.Prefix
	dev int
}

// route is one of the kernel's, from any table.
type route struct {
	to    netip.Prefix
	kind  byte // RTN_
	table uint32
	hops  []hop
}

// hop is where a route leads.
type hop struct {
	dev int
	// via is the gateway; not valid if that is none of IPv4.
	via netip.Addr
	// onLink: there is no gateway, of any family.
	onLink bool
}

func read(own string) (*machine, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("read the interfaces: %w", err)
	}
	if len(interfaces) == 0 {
		return nil, errors.New("read the interfaces: the kernel told of none, not even of loopback")
	}
	m := &machine{names: map[int]string{}}
	mesh := 0
	for _, i := range interfaces {
		m.names[i.Index] = i.Name
		if i.Name == own {
			mesh = i.Index
			continue
		}
		all, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("read the addresses of %s: %w", i.Name, err)
		}
		for _, a := range all {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && p.Addr().Is4() && !(p.IsSingleIP() && i.Flags&net.FlagLoopback != 0) {
				m.addresses = append(m.addresses, address{p, i.Index})
			}
		}
	}
	all, err := routes()
	if err != nil {
		return nil, fmt.Errorf("read the routes: %w", err)
	}
	for _, r := range all {
		r.hops = slices.DeleteFunc(r.hops, func(h hop) bool { return mesh != 0 && h.dev == mesh })
		if len(r.hops) > 0 || leadsNowhere(r.kind) {
			m.routes = append(m.routes, r)
		}
	}
	// The second one has the servers behind the resolver of systemd.
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		raw, err := limit.ReadFile(file, limit.File)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		m.nameServers = append(m.nameServers, nameServers(string(raw))...)
	}
	return m, nil
}

func (m *machine) addressesIn(in netip.Prefix) (uses []string) {
	for _, a := range m.addresses {
		switch {
		case in.Contains(a.Addr()):
			uses = append(uses, fmt.Sprintf("%s has the address %s", m.names[a.dev], a))
		case in.Overlaps(a.Masked()):
			uses = append(uses, fmt.Sprintf("%s is in the network %s", m.names[a.dev], a.Masked()))
		}
	}
	return uses
}

func (m *machine) routesIn(in netip.Prefix) (uses []string) {
	for _, r := range m.routes {
		if !r.takes(in) || m.followsFromAnAddress(r) {
			continue
		}
		use := "a route leads to " + r.to.String()
		switch {
		case leadsNowhere(r.kind):
			use = fmt.Sprintf("a route makes %s unreachable", r.to)
		case r.kind == unix.RTN_LOCAL:
			use = fmt.Sprintf("a route makes %s this machine's own", r.to)
		}
		for _, h := range r.hops {
			use += " through " + m.names[h.dev]
			if h.via.IsValid() {
				use += " by " + h.via.String()
			}
		}
		if r.table != unix.RT_TABLE_MAIN && r.table != unix.RT_TABLE_LOCAL {
			use += fmt.Sprintf(" (table %d)", r.table)
		}
		uses = append(uses, use)
	}
	return uses
}

// followsFromAnAddress: the kernel makes a route for each address's network.
func (m *machine) followsFromAnAddress(r route) bool {
	return slices.ContainsFunc(m.addresses, func(a address) bool {
		return a.Masked() == r.to && len(r.hops) == 1 && r.hops[0].dev == a.dev && r.hops[0].onLink
	})
}

func (m *machine) gatewaysIn(in netip.Prefix) (uses []string) {
	for _, r := range m.routes {
		for _, h := range r.hops {
			if h.via.IsValid() && in.Contains(h.via) {
				uses = append(uses, fmt.Sprintf("a gateway of %s has the address %s", m.names[h.dev], h.via))
			}
		}
	}
	return uses
}

// takes says whether a route speaks of addresses of a range in particular.
func (r route) takes(in netip.Prefix) bool {
	within := in.Bits() <= r.to.Bits()
	switch {
	case !in.Overlaps(r.to):
		return false
	case r.kind == unix.RTN_UNREACHABLE && r.to == in:
		return false // the mesh's
	case leadsNowhere(r.kind):
		return within
	case r.kind == unix.RTN_LOCAL:
		return !r.to.IsSingleIP() // a single one is an address
	case r.kind != unix.RTN_UNICAST:
		return false
	case r.to.Bits() <= 1:
		return false // the default route, or a half of it, as VPNs write it
	}
	return within || slices.ContainsFunc(r.hops, func(h hop) bool { return h.onLink })
}

func leadsNowhere(kind byte) bool {
	return kind == unix.RTN_BLACKHOLE || kind == unix.RTN_UNREACHABLE || kind == unix.RTN_PROHIBIT
}

// routes asks the kernel, whose answer has the same form in all versions: what `ip
// route` prints of it has not, and /proc/net/route has one table only.
func routes() ([]route, error) {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_INET)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return nil, err
	}
	var all []route
	for _, m := range messages {
		// struct rtmsg has family, dst_len, table and type at 0, 1, 4 and 7.
		if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) < unix.SizeofRtMsg || m.Data[0] != unix.AF_INET {
			continue
		}
		attrs, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, err
		}
		r := route{kind: m.Data[7], table: uint32(m.Data[4])}
		to := netip.IPv4Unspecified()
		single := hop{onLink: true}
		for _, a := range attrs {
			switch a.Attr.Type {
			case unix.RTA_DST:
				to, _ = netip.AddrFromSlice(a.Value)
			case unix.RTA_TABLE:
				r.table = number(a.Value)
			case unix.RTA_MULTIPATH:
				r.hops = multipath(a.Value)
			default:
				single.read(a.Attr.Type, a.Value)
			}
		}
		if r.hops == nil && single.dev != 0 {
			r.hops = []hop{single}
		}
		if r.to, err = to.Prefix(int(m.Data[1])); err != nil {
			return nil, fmt.Errorf("a route to %s/%d: %w", to, m.Data[1], err)
		}
		all = append(all, r)
	}
	return all, nil
}

func (h *hop) read(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_OIF:
		h.dev = int(number(value))
	case unix.RTA_GATEWAY:
		h.via, _ = netip.AddrFromSlice(value)
		h.onLink = false
	case unix.RTA_VIA: // of another family
		h.onLink = false
	}
}

// multipath reads struct rtnexthop, again and again: its length, flags and weight,
// the interface, and attributes.
func multipath(b []byte) (hops []hop) {
	const header = unix.SizeofRtNexthop
	for len(b) >= header {
		length := int(binary.NativeEndian.Uint16(b))
		if length < header || length > len(b) {
			break
		}
		h := hop{dev: int(number(b[4:])), onLink: true}
		for attrs := b[header:length]; len(attrs) >= unix.SizeofRtAttr; {
			size := int(binary.NativeEndian.Uint16(attrs))
			if size < unix.SizeofRtAttr || size > len(attrs) {
				break
			}
			h.read(binary.NativeEndian.Uint16(attrs[2:]), attrs[unix.SizeofRtAttr:size])
			attrs = attrs[min(aligned(size), len(attrs)):]
		}
		hops = append(hops, h)
		b = b[min(aligned(length), len(b)):]
	}
	return hops
}

func aligned(n int) int { return (n + 3) &^ 3 }

func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// nameServers are those of a file in the form of resolv.conf.
func nameServers(file string) (servers []Outside) {
	for line := range strings.Lines(file) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, Outside{a, "a name server"})
		}
	}
	return servers
}
