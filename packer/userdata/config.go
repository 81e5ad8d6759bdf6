//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config,NetworkConfig,DirectoryConfig,ConsulConfig,FirewallConfig,Output

package userdata

import (
	"errors"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
)

// Config is the document of a mesh in HCL. What is left out has the default of
// the document.
type Config struct {
	// Any nodes of the mesh, each a host name or an IPv4 address; `[]` for the
	// first node. A node that is itself among them skips itself, so that one
	// document serves all.
	Peers []string `mapstructure:"peers" required:"true"`
	// The secret that the mesh shares: what `xivo-firstboot secret` prints. One that
	// is easily guessed is refused. Take it from a
	// variable that is `sensitive`: Packer then keeps it out of its output and
	// logs wherever it stands as you wrote it. Within `user_data` it stands as
	// YAML writes it, which differs when it has a quote, for example: keep that
	// `sensitive`, too. Either this or `secret_file`.
	Secret string `mapstructure:"secret"`
	// A file on the node, with an absolute path, that holds the secret.
	SecretFile string `mapstructure:"secret_file"`
	// What carries what the nodes tell each other. Defaults to a network of the
	// mesh's own.
	Network NetworkConfig `mapstructure:"network"`
	// An IPv4 address at which the other nodes try to reach this one first.
	// Defaults to `auto`: those that the machine has, whichever they are.
	Advertise string `mapstructure:"advertise"`
	// The network interface whose IPv4 addresses these are, instead of `advertise`.
	AdvertiseInterface string `mapstructure:"advertise_interface"`
	// `auto`, `keep` or `regenerate`. Defaults to `auto`, which is right for
	// images that `xivo-seal` made.
	Identity string `mapstructure:"identity"`
	// `mesh`, `ring` or `hub`. Defaults to `mesh`.
	Topology string `mapstructure:"topology"`
	// The peer in the middle of a `hub`.
	Hub string `mapstructure:"hub"`
	// How the contacts of other nodes are looked up.
	Directory DirectoryConfig `mapstructure:"directory"`
	// How Consul is interconnected.
	Consul ConsulConfig `mapstructure:"consul"`
	// Who reaches the ports that the mesh opens.
	Firewall FirewallConfig `mapstructure:"firewall"`
	// Carry the document in a `write_files` entry instead of the key `xivo`.
	// It means the same; newer releases of cloud-init warn about a key that
	// they do not know, and take this one without a word.
	WriteFiles bool `mapstructure:"write_files"`
}

// NetworkConfig is the block network.
type NetworkConfig struct {
	// `overlay`, an encrypted network of the mesh's own, or `direct`, one that is
	// there already: a VPN, for example. Defaults to `overlay`.
	Mode string `mapstructure:"mode"`
	// In `overlay`, where the nodes' addresses in it are drawn from: an IPv4
	// network of /8 to /30 in private or shared address space that no node uses
	// otherwise, the same for all nodes. Defaults to `100.88.0.0/16`.
	Range string `mapstructure:"range"`
	// Where the other nodes reach this one first, UDP and TCP. Defaults to `9484`.
	Port *int `mapstructure:"port"`
	// In `direct`, the interface on the node that leads to the network. Required
	// there.
	Interface string `mapstructure:"interface"`
	// In `direct`, that others may be in that network, too: what the nodes tell
	// each other is not hidden from them. Defaults to false.
	Shared config.Trilean `mapstructure:"shared"`
}

// DirectoryConfig is the block directory.
type DirectoryConfig struct {
	// The contexts that see the contacts of other nodes. Defaults to those that
	// list the local users.
	Contexts []string `mapstructure:"contexts"`
	// Check the certificates of the peers. Defaults to false.
	VerifyCertificate config.Trilean `mapstructure:"verify_certificate"`
	// A file on the node with the authority to check them against.
	CAFile string `mapstructure:"ca_file"`
}

// ConsulConfig is the block consul.
type ConsulConfig struct {
	// Encrypt the gossip. Defaults to true.
	Encrypt config.Trilean `mapstructure:"encrypt"`
}

// FirewallConfig is the block firewall.
type FirewallConfig struct {
	// Close the ports of the mesh to everybody else. Defaults to true.
	Enabled config.Trilean `mapstructure:"enabled"`
	// IPv4 addresses and networks that may reach xivo-ctid (9495) and RabbitMQ's
	// management (15672), too.
	Allow []string `mapstructure:"allow"`
	// `open` lets all local users of the node ask the cloud's metadata service,
	// which may give out the user data with the secret. Defaults to root only.
	Metadata string `mapstructure:"metadata"`
}

// Prepare reads and checks the configuration. The error has every problem, by
// the attribute's name in HCL, and never a secret. A configuration that is not
// wholly known yet is checked when it is.
func (c *Config) Prepare(raws ...any) error {
	// Without interpolation: a secret may hold `{{`.
	if err := config.Decode(c, &config.DecodeOpts{PluginType: "xivo.user-data"}, raws...); err != nil {
		return err
	}
	if _, err := c.document(); err != nil && !c.isUnknown() {
		return err
	}
	return nil
}

func (c *Config) isUnknown() bool {
	return strings.Contains(string(c.yaml()), configuration.Unknown)
}

// document is the accepted document. All rules are those of package cloudinit.
func (c *Config) document() (*cloudinit.Config, error) {
	if c.Advertise != "" && c.AdvertiseInterface != "" {
		return nil, errors.New("advertise_interface: there is advertise, too, keep one of the two")
	}
	doc, err := cloudinit.Parse(c.yaml(), "user_data")
	var bad *cloudinit.InvalidError
	if !errors.As(err, &bad) {
		return doc, err
	}
	var problems configuration.Problems
	for _, p := range bad.Problems {
		problems.Addf("%s: %s, %s", attribute(p.Path), p.What, inHCL.Replace(p.Do))
	}
	return nil, problems.Err()
}

// attribute is the name in HCL of a value of the document.
func attribute(path string) string {
	path = strings.TrimPrefix(path, "xivo.")
	if path == "advertise.interface" {
		return "advertise_interface"
	}
	return path
}

// inHCL turns the advice that shows YAML.
var inHCL = strings.NewReplacer(
	"`peers: []`", "`peers = []`",
	"`mode: overlay`", "`mode = \"overlay\"`",
	"`mode: direct`", "`mode = \"direct\"`",
	"`topology: hub`", "`topology = \"hub\"`",
	"`verify_certificate: true`", "`verify_certificate = true`",
	"or {interface: eth1}", "or set advertise_interface",
	"write auto, or name contexts", "leave it out, or name contexts",
)

// yaml is the document as it was written in HCL, without what was left out.
func (c *Config) yaml() []byte {
	block := map[string]any{"version": cloudinit.FormatVersion}
	setList(block, "peers", c.Peers)
	for key, value := range map[string]string{
		"secret": c.Secret, "secret_file": c.SecretFile,
		"advertise": c.Advertise, "identity": c.Identity, "topology": c.Topology, "hub": c.Hub,
	} {
		setText(block, key, value)
	}
	if c.AdvertiseInterface != "" {
		block["advertise"] = map[string]any{"interface": c.AdvertiseInterface}
	}
	for key, value := range map[string]map[string]any{
		"network": c.Network.block(), "directory": c.Directory.block(), "consul": c.Consul.block(), "firewall": c.Firewall.block(),
	} {
		if len(value) > 0 {
			block[key] = value
		}
	}

	out, err := yaml.Marshal(map[string]any{"xivo": block})
	if err != nil {
		panic(err) // impossible: texts, numbers, truths and lists of texts
	}
	return append([]byte("#cloud-config\n"), out...)
}

func (n *NetworkConfig) block() map[string]any {
	block := map[string]any{}
	for key, value := range map[string]string{"mode": n.Mode, "range": n.Range, "interface": n.Interface} {
		setText(block, key, value)
	}
	if n.Port != nil {
		block["port"] = *n.Port
	}
	setBool(block, "shared", n.Shared)
	return block
}

func (d *DirectoryConfig) block() map[string]any {
	block := map[string]any{}
	setList(block, "contexts", d.Contexts)
	setBool(block, "verify_certificate", d.VerifyCertificate)
	setText(block, "ca_file", d.CAFile)
	return block
}

func (c *ConsulConfig) block() map[string]any {
	block := map[string]any{}
	setBool(block, "encrypt", c.Encrypt)
	return block
}

func (f *FirewallConfig) block() map[string]any {
	block := map[string]any{}
	setBool(block, "enabled", f.Enabled)
	setList(block, "allow", f.Allow)
	setText(block, "metadata", f.Metadata)
	return block
}

// What is left out in HCL is left out of the document. An empty list is written:
// `peers = []` is the first node.

func setText(to map[string]any, key, value string) {
	if value != "" {
		to[key] = value
	}
}

func setList(to map[string]any, key string, value []string) {
	if value != nil {
		to[key] = value
	}
}

func setBool(to map[string]any, key string, value config.Trilean) {
	if value != config.TriUnset {
		to[key] = value.True()
	}
}
