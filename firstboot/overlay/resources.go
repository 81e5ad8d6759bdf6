package overlay

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// lastResort is the metric of the route that leads nowhere. Old versions of ip print
// metrics as signed numbers.
const lastResort = 1<<31 - 1

// Addressed is what a node has of the overlay at all times, also while its service
// is down: its address on the loopback interface, so that Consul and telephony
// start, and no way to the range, so that nothing meant for a member follows the
// default route. It lasts until the next boot.
func Addressed(a Address) engine.Resource {
	return engine.All{NoOtherWay(a.Range), OnLoopback(a)}
}

// OnLoopback is that the loopback interface has the address, and no other of its
// range.
func OnLoopback(a Address) engine.Resource {
	want := netip.PrefixFrom(a.Address, 32)
	// read tells whether it is there, and which others of the range are.
	read := func(ctx context.Context) (there bool, others []netip.Prefix, err error) {
		out, err := ip(ctx, "addr", "show", "dev", "lo")
		if err != nil {
			return false, nil, fmt.Errorf("overlay: read the addresses of lo: %w", err)
		}
		if !strings.Contains(out, "lo:") {
			return false, nil, fmt.Errorf("overlay: read the addresses of lo: ip told nothing of it")
		}
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			if len(f) < 2 || f[0] != "inet" {
				continue
			}
			has, err := netip.ParsePrefix(f[1])
			switch {
			case err != nil:
				return false, nil, fmt.Errorf("overlay: read the addresses of lo: %w", err)
			case has == want:
				there = true
			case a.Range.Contains(has.Addr()):
				others = append(others, has)
			}
		}
		return there, others, nil
	}
	diff := func(ctx context.Context) ([]string, error) {
		there, others, err := read(ctx)
		var diff []string
		if err == nil && !there {
			diff = append(diff, fmt.Sprintf("lo does not have the overlay address %s", a.Address))
		}
		for _, o := range others {
			diff = append(diff, fmt.Sprintf("lo has %s, which is not this node's overlay address", o))
		}
		return diff, err
	}
	apply := func(ctx context.Context) error {
		there, others, err := read(ctx)
		if err != nil {
			return err
		}
		if !there {
			if _, err := ip(ctx, "addr", "add", want.String(), "dev", "lo"); err != nil {
				return fmt.Errorf("overlay: give lo %s: %w", want, err)
			}
		}
		// A new network namespace has it down.
		if _, err := ip(ctx, "link", "set", "dev", "lo", "up"); err != nil {
			return fmt.Errorf("overlay: set lo up: %w", err)
		}
		for _, o := range others {
			if _, err := ip(ctx, "addr", "del", o.String(), "dev", "lo"); err != nil {
				return fmt.Errorf("overlay: take %s from lo: %w", o, err)
			}
		}
		return nil
	}
	return engine.New(diff, apply)
}

// NoOtherWay is the route by which packets to the range are unreachable where no
// better one is: that of the overlay's interface.
func NoOtherWay(in netip.Prefix) engine.Resource {
	in = in.Masked()
	metric := strconv.Itoa(lastResort)
	diff := func(ctx context.Context) ([]string, error) {
		out, err := ip(ctx, "-4", "route", "show", "table", "main")
		if err != nil {
			return nil, fmt.Errorf("overlay: read the routes: %w", err)
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "unreachable "+in.String()+" ") && strings.Contains(line+" ", " metric "+metric+" ") {
				return nil, nil
			}
		}
		return []string{fmt.Sprintf("packets to %s that the overlay does not take would follow other routes", in)}, nil
	}
	apply := func(ctx context.Context) error {
		if _, err := ip(ctx, "route", "replace", "unreachable", in.String(), "metric", metric); err != nil {
			return fmt.Errorf("overlay: make %s unreachable: %w", in, err)
		}
		return nil
	}
	return engine.New(diff, apply)
}

// ip runs iproute's command, whose words are the same from Debian 7 on.
func ip(ctx context.Context, args ...string) (string, error) {
	return platform.Run(ctx, "ip", args...)
}
