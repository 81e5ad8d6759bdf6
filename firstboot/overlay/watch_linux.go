package overlay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// calm is how long one call of many changes in a row comes after the other.
const calm = 250 * time.Millisecond

// watchAddresses calls f, until ctx ends, after this machine's addresses or routes
// changed. What changes while f runs makes one more call.
func watchAddresses(ctx context.Context, f func()) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE})
	}
	if err != nil {
		return fmt.Errorf("overlay: watch the addresses of this machine: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "netlink")
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	changed := make(chan struct{}, 1)
	go func() {
		defer stop()
		defer socket.Close()
		// A message says no more than that there was one: it may be cut off, and when
		// too many came for the socket (ENOBUFS), that is one as well.
		for buf := make([]byte, 4096); ctx.Err() == nil; {
			if _, err := socket.Read(buf); err != nil && ctx.Err() != nil {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				f()
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(calm):
			}
		}
	}()
	return nil
}

// ownEndpoints is where this machine may be reached on a port: its addresses on other
// interfaces than the overlay's, IPv4 first.
func ownEndpoints(port uint16, in netip.Prefix) []netip.AddrPort {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var four, six []netip.AddrPort
	for _, i := range interfaces {
		if i.Name == Interface || i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, _ := i.Addrs()
		for _, a := range addresses {
			p, err := netip.ParsePrefix(a.String())
			e := netip.AddrPortFrom(p.Addr().Unmap(), port)
			switch {
			case err != nil || !reachable(e, in):
			case e.Addr().Is4():
				four = append(four, e)
			default:
				six = append(six, e)
			}
		}
	}
	return append(four[:min(len(four), maxEndpoints-3)], six[:min(len(six), 2)]...)
}
