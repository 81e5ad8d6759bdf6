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
)

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

// interfaceWait is how long an interface is waited for that others bring up.
const interfaceWait = time.Minute

// addressOn is the lowest IPv4 address of an interface, or the wanted one where it has
// that. An interface without one is waited for, 1 min at most.
func addressOn(ctx context.Context, name, wanted string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, interfaceWait)
	defer cancel()
	for {
		local, err := LocalAddresses()
		if err != nil {
			return netip.Addr{}, err
		}
		var own []netip.Addr
		for _, a := range slices.SortedFunc(maps.Keys(local), netip.Addr.Compare) {
			if local[a] == name && !a.IsLoopback() {
				own = append(own, a)
			}
		}
		switch a, err := netip.ParseAddr(wanted); {
		case len(own) > 0 && wanted == "":
			return own[0], nil
		case err == nil && slices.Contains(own, a):
			return a, nil
		case len(own) > 0:
			return netip.Addr{}, fmt.Errorf("network: %s, which `advertise` names, is no address of %s; this machine has %s", wanted, name, list(local))
		}
		select {
		case <-ctx.Done():
			return netip.Addr{}, fmt.Errorf("network: the interface %s has no IPv4 address; this machine has %s: bring it up, or name another in `network.interface`", name, list(local))
		case <-time.After(time.Second):
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
