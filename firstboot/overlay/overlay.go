// Package overlay is the network of the mesh's own: an address for life, a
// userspace WireGuard between the members, the hello by which two nodes that share
// the secret learn of each other, and the membership that spreads what they know.
// It wraps golang.zx2c4.com/wireguard, flynn/noise and hashicorp/memberlist.
//
// Nothing here waits for the network before it returns an address: a node has its
// own, and works, also while nobody answers.
package overlay

import "net/netip"

const (
	// Port is the one port that a node has open: UDP for WireGuard, TCP for the
	// hello.
	Port = 9484
	// MembersPort is where the membership listens, TCP and UDP, on the overlay
	// address.
	MembersPort = 9483
	// Interface is what leads to the range.
	Interface = "xivo-mesh"
	// MTU is what passes on every link: IPv6 promises 1280 bytes, and a path that
	// loses ICMP finds no other.
	MTU = 1280
)

// DefaultRange is where overlay addresses are drawn from: a small part of the
// carriers' 100.64.0.0/10, as LANs have no address in it.
var DefaultRange = netip.MustParsePrefix("100.88.0.0/16")
