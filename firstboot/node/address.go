package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
)

// routeProbe is an address of the documentation range: nothing is ever sent to
// it, it only asks the kernel for the default route.
const routeProbe = "192.0.2.1"

// LocalAddresses returns the IPv4 addresses of this machine, each with the name of
// its interface.
func LocalAddresses() (map[netip.Addr]string, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]string{}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				out[p.Addr()] = i.Name
			}
		}
	}
	return out, nil
}

// OtherAddresses resolves the document's peers, IPv4 addresses or host names, and
// returns the addresses of those that are not this node, each once: of a name with
// several addresses, the first. It takes 5 s at most. A peer that cannot be resolved
// is in the error; the others are returned.
func OtherAddresses(ctx context.Context, peers []string) ([]string, error) {
	local, err := LocalAddresses()
	if err != nil {
		return nil, err
	}
	answers := lookup(ctx, peers)
	var out []string
	var errs []error
	seen := map[netip.Addr]bool{}
	for i, peer := range peers {
		addrs, err := answers[i].addrs, answers[i].err
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %s: %w", peer, err))
			continue
		}
		// Debian resolves a machine's own name to 127.0.1.1, beside others or not.
		if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return local[a.Unmap()] != "" || a.IsLoopback() }) {
			continue
		}
		if a := addrs[0].Unmap(); !seen[a] {
			seen[a] = true
			out = append(out, a.String())
		}
	}
	return out, errors.Join(errs...)
}

// resolved is what the resolver says of a name.
type resolved struct {
	addrs []netip.Addr
	err   error
}

// lookup asks for the IPv4 addresses of names, 5 s at most and all at once: one
// that no server answers for must not cost the others their time.
func lookup(ctx context.Context, names []string) []resolved {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	answers := make([]resolved, len(names))
	var asked sync.WaitGroup
	for i, name := range names {
		asked.Go(func() {
			answers[i].addrs, answers[i].err = net.DefaultResolver.LookupNetIP(ctx, "ip4", name)
		})
	}
	asked.Wait()
	return answers
}

// Hosts remembers where host names that a person wrote led last.
type Hosts map[string][]netip.Addr

// ByAddress returns, by IPv4 address, which of the hosts lead there. Where a name
// cannot be resolved now, it leads where it last did.
func (known Hosts) ByAddress(ctx context.Context, hosts []string) map[string][]string {
	out := map[string][]string{}
	for i, a := range lookup(ctx, hosts) {
		if a.err == nil {
			known[hosts[i]] = a.addrs
		}
		for _, addr := range known[hosts[i]] {
			out[addr.Unmap().String()] = append(out[addr.Unmap().String()], hosts[i])
		}
	}
	return out
}

// namesWait is how long the names of peers are waited for where they decide.
const namesWait = time.Minute

// Advertise decides the IPv4 address at which the others reach this node, as the
// document says: its own, that of an interface, or the one from which the kernel
// reaches the peers. An address that no interface of this machine has is refused.
// Where the machine has several addresses and no peer's name resolves, it waits for
// the name servers, 1 min at most, and then fails.
func Advertise(ctx context.Context, c *cloudinit.Config) (string, error) {
	local, err := LocalAddresses()
	if err != nil {
		return "", err
	}
	var address string
	switch want := c.Advertise; {
	case want.Interface != "":
		address, err = addressOf(want.Interface, local)
	case want.Address != "":
		address, err = ownAddress(want.Address, local)
	default:
		address, err = routedAddress(ctx, c.Peers, local)
	}
	if err != nil {
		return "", fmt.Errorf("advertise: %w", err)
	}
	return address, nil
}

// addressOf is the lowest address of an interface.
func addressOf(name string, local map[netip.Addr]string) (string, error) {
	for _, a := range slices.SortedFunc(maps.Keys(local), netip.Addr.Compare) {
		if local[a] == name && !a.IsLoopback() {
			return a.String(), nil
		}
	}
	return "", fmt.Errorf("interface %s has no IPv4 address; this machine has %s", name, list(local))
}

func ownAddress(address string, local map[netip.Addr]string) (string, error) {
	a, err := netip.ParseAddr(address)
	if err != nil || local[a] == "" || a.IsLoopback() {
		return "", fmt.Errorf("%s is not an address of this machine that others can reach; it has %s", address, list(local))
	}
	return address, nil
}

// routedAddress is the one from which the kernel reaches the peers or, without any,
// the world. Where no route tells, the only one will do.
func routedAddress(ctx context.Context, peers []string, local map[netip.Addr]string) (string, error) {
	var usable []string
	for a := range local {
		if a.IsGlobalUnicast() {
			usable = append(usable, a.String())
		}
	}
	targets, err := peersThatDecide(ctx, peers, len(usable) > 1)
	if err != nil {
		return "", fmt.Errorf("no name among the peers can be resolved (%w), so nothing tells which of its addresses this machine has for them: %s; mend that, or set `advertise` to one", err, list(local))
	}
	for _, to := range append(targets, routeProbe) {
		// Connecting a UDP socket sends nothing: the kernel picks the route.
		conn, err := net.Dial("udp4", net.JoinHostPort(to, "9"))
		if err != nil {
			continue
		}
		conn.Close()
		if a := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); !a.IsLoopback() {
			return a.Unmap().String(), nil
		}
	}
	if len(usable) == 1 {
		return usable[0], nil
	}
	return "", fmt.Errorf("no route tells at which address the others reach this machine, which has %s: set `advertise` to one", list(local))
}

// peersThatDecide are the addresses of the peers. Where there is a choice, it waits
// for a name of them: the node keeps its address for life, and a server for names
// that is late must not decide it. The error says that none came.
func peersThatDecide(ctx context.Context, peers []string, choice bool) ([]string, error) {
	end := time.Now().Add(namesWait)
	for {
		addresses, err := OtherAddresses(ctx, peers)
		if err == nil || len(addresses) > 0 || !choice {
			return addresses, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Second):
			if time.Now().After(end) {
				return nil, err
			}
		}
	}
}

// list shows addresses to a person.
func list(local map[netip.Addr]string) string {
	var out []string
	for _, a := range slices.SortedFunc(maps.Keys(local), netip.Addr.Compare) {
		if !a.IsLoopback() {
			out = append(out, fmt.Sprintf("%s (%s)", a, local[a]))
		}
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
