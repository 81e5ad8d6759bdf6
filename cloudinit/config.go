// Package cloudinit is the user's side of a first boot: the document that a
// user writes, strict reading of it, where it is found on a booted machine,
// seeds that carry it, and the files that a baked image needs.
//
// It is the only package that reads YAML from users.
package cloudinit

import (
	"crypto/rand"
	"net/netip"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// FormatVersion is the one version of the document that this program knows.
const FormatVersion = 1

// MinSecret is the least number of characters of a secret.
const MinSecret = 16

// Values of Config.Identity.
const (
	IdentityAuto       = "auto"       // a sealed image or a clone becomes itself; anything else is left as it is
	IdentityKeep       = "keep"       // adopt a running XiVO with the identity that it has
	IdentityRegenerate = "regenerate" // give a running XiVO a new identity
)

// Values of Config.Topology.
const (
	TopologyMesh = "mesh"
	TopologyRing = "ring"
	TopologyHub  = "hub"
)

// Values of Network.Mode.
const (
	NetworkOverlay = "overlay" // a network of the mesh's own
	NetworkDirect  = "direct"  // one that is there already: a VPN, for example
)

// MetadataOpen is the value of Firewall.Metadata beside "".
const MetadataOpen = "open"

// Config is an accepted document with all defaults applied.
type Config struct {
	// Version is FormatVersion.
	Version int
	// Peers are nodes of the mesh, each a host name in lower case or an IPv4
	// address, without repetition, in the order of the document. This node may
	// be among them. Empty for the first node.
	Peers []string
	// Secret is shared by the mesh. Empty only after Parse of a document that
	// names a SecretFile: ReadSecret, which Load calls, fills it in.
	Secret secret.Secret
	// SecretFile is the absolute path of the file that holds the secret, or "".
	SecretFile string
	Network    Network
	Advertise  Advertise
	// Identity is one of the Identity constants.
	Identity string
	// Topology is one of the Topology constants.
	Topology string
	// Hub is the peer in the middle; set if and only if Topology is TopologyHub.
	Hub       string
	Directory Directory
	Consul    Consul
	Firewall  Firewall
}

// Network is what carries what the nodes tell each other.
type Network struct {
	// Mode is one of the Network constants.
	Mode string
	// Range is where the nodes' addresses are drawn from: an IPv4 network of /8 to
	// /30 in private or shared address space, with host bits zero. It is valid if
	// and only if Mode is NetworkOverlay.
	Range netip.Prefix
	// Port is the one at which other nodes reach this one first, UDP and TCP.
	Port int
	// Interface is what leads to the network; set if and only if Mode is
	// NetworkDirect.
	Interface string
	// Shared says that the network of Interface may be one that others are in, too.
	Shared bool
}

// Advertise says where the other nodes try to reach this one first, before the addresses
// that the machine has. At most one field is set; the zero value is "auto".
type Advertise struct {
	// Address is an IPv4 address that other machines can reach.
	Address string
	// Interface is the network interface whose IPv4 addresses these are.
	Interface string
}

// Directory is how the contacts of other nodes are looked up.
type Directory struct {
	// Contexts are the names of the contexts that see them; nil is "auto".
	Contexts []string
	// VerifyCertificate checks the peers' certificates, against CAFile where
	// that is not "".
	VerifyCertificate bool
	CAFile            string
}

// Consul is what a user can say about the interconnection of Consul.
type Consul struct {
	// Encrypt encrypts its gossip.
	Encrypt bool
}

// Firewall is who reaches the ports that the mesh opens.
type Firewall struct {
	Enabled bool
	// Allow are IPv4 addresses and networks, the latter with host bits zero.
	Allow []string
	// Metadata is MetadataOpen where all local users may ask the cloud's metadata
	// service, and "" where root only may.
	Metadata string
}

// networkOf is what a mode gets that nothing else is said of.
func networkOf(mode string) Network {
	n := Network{Mode: mode, Port: 9484}
	if mode == NetworkOverlay {
		n.Range = netip.MustParsePrefix("100.88.0.0/16")
	}
	return n
}

// defaults is what a document that says nothing else gets.
func defaults() *Config {
	return &Config{
		Version:  FormatVersion,
		Identity: IdentityAuto,
		Topology: TopologyMesh,
		Network:  networkOf(NetworkOverlay),
		Consul:   Consul{Encrypt: true},
		Firewall: Firewall{Enabled: true},
	}
}

// Alone returns the document of a node that was given none: no peers, and a
// secret that nobody else has, so that what is derived from it opens nothing
// elsewhere. Keep it: the next call returns another secret.
func Alone() *Config {
	c := defaults()
	c.Secret = secret.Secret(rand.Text())
	return c
}
