// Package cloudinit is the user's side of a first boot: the document that a
// user writes, strict reading of it, where it is found on a booted machine,
// seeds that carry it, and the files that a baked image needs.
//
// It is the only package that reads YAML from users.
package cloudinit

import (
	"crypto/rand"

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

// Advertise says at which address the other nodes reach this one. At most one
// field is set; the zero value is "auto".
type Advertise struct {
	// Address is an IPv4 address that other machines can reach.
	Address string
	// Interface is the network interface whose IPv4 address it is.
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
	// Strict guards the ports that XiVO had open before, too.
	Strict bool
	// Allow are IPv4 addresses and networks, the latter with host bits zero.
	Allow []string
}

// defaults is what a document that says nothing else gets.
func defaults() *Config {
	return &Config{
		Version:  FormatVersion,
		Identity: IdentityAuto,
		Topology: TopologyMesh,
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
