//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config,Node

package seediso

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/template/config"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
)

// Config is the post-processor's configuration.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// The nodes, one block for each.
	Nodes []Node `mapstructure:"node" required:"true"`
	// The user data of every node that has none of its own: a cloud-config with
	// the document of the mesh, as the data source `xivo-user-data` makes it.
	// One document serves all nodes.
	UserData string `mapstructure:"user_data"`
	// Where the seeds go. They hold the secret of the mesh: the folder, where it
	// is made, and the seeds are for their owner only. Defaults to `seeds` in
	// the current folder.
	OutputDirectory string `mapstructure:"output_directory"`
	// The disk image that the command lines boot clones of. Defaults to the one
	// in the artifact; without either, no command lines are shown.
	Image string `mapstructure:"image"`
	// The bridge that the command lines attach the nodes to. Without one, QEMU
	// gets its user network, where nodes do not see each other, and libvirt its
	// network `default`.
	Bridge string `mapstructure:"bridge"`
}

// Node is the block node: one machine.
type Node struct {
	// The host name, with or without a domain.
	Hostname string `mapstructure:"hostname" required:"true"`
	// What makes a clone a clone: unique for each machine, the same for as long
	// as that lives. Defaults to `i-` and the host name, so that writing the
	// seed of a running node again does not make it another machine. Set it to
	// give the name of a node to another machine.
	InstanceID string `mapstructure:"instance_id"`
	// The network interface, as the machine names it, that gets the address.
	Interface string `mapstructure:"interface"`
	// An address with the length of its network, for example `192.168.1.21/24`.
	// Without one, the network is left to cloud-init, which asks DHCP.
	Address string `mapstructure:"address"`
	// The gateway of the default route.
	Gateway string `mapstructure:"gateway"`
	// The addresses of name servers.
	Nameservers []string `mapstructure:"nameservers"`
	// The user data of this node only.
	UserData string `mapstructure:"user_data"`
}

// DefaultOutputDirectory is Config.OutputDirectory where it is not set.
const DefaultOutputDirectory = "seeds"

// bridgeName is what Linux takes for an interface, less what a shell or QEMU
// would read differently.
var bridgeName = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,15}$`)

// Names of files and words of command lines are made of these two.
var (
	hostName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	instanceID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
)

// Prepare reads and completes the configuration; the error has every problem,
// by the attribute's name in HCL, and never a secret.
func (c *Config) Prepare(raws ...any) error {
	// Without interpolation: user data may hold `{{`, and what is wrong with a
	// template would be told with the whole text, secret and all.
	if err := config.Decode(c, &config.DecodeOpts{PluginType: "xivo.seed"}, raws...); err != nil {
		return err
	}
	if c.OutputDirectory == "" {
		c.OutputDirectory = DefaultOutputDirectory
	}
	_, err := c.seeds()
	return err
}

// seeds is what each node is told, in the order of the blocks.
func (c *Config) seeds() ([]cloudinit.SeedNode, error) {
	var problems configuration.Problems
	if strings.Contains(c.OutputDirectory, ",") {
		problems.Addf("output_directory: %q has a comma, which separates options on the command lines; choose another", c.OutputDirectory)
	}
	if !bridgeName.MatchString(c.Bridge) {
		problems.Addf("bridge: %q is not the name of a bridge", c.Bridge)
	}
	if len(c.Nodes) == 0 {
		problems.Addf("node: there is none; write a block `node { hostname = … }` for each machine")
	}
	if c.UserData != "" {
		for _, problem := range checkUserData(c.UserData) {
			problems.Addf("user_data: %w", problem)
		}
	}

	seeds := make([]cloudinit.SeedNode, len(c.Nodes))
	names := newUniqueNames()
	for i, n := range c.Nodes {
		fail := func(format string, args ...any) {
			problems.Addf("node[%d].%w", i, fmt.Errorf(format, args...))
		}
		seeds[i] = n.seed(c.UserData, fail)
		names.add(i, seeds[i], fail)
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return seeds, nil
}

// uniqueNames are the names that the nodes have, each with the index of its node.
type uniqueNames struct{ hosts, instances map[string]int }

func newUniqueNames() uniqueNames { return uniqueNames{map[string]int{}, map[string]int{}} }

// add fails for a node that has a name of an earlier one.
func (u uniqueNames) add(i int, seed cloudinit.SeedNode, fail failFunc) {
	if seed.Hostname == configuration.Unknown {
		return
	}
	// Names of files, too, and some file systems do not tell cases apart.
	host := strings.ToLower(seed.Hostname)
	if first, taken := u.hosts[host]; taken {
		fail("hostname: %q is that of node[%d]; give each its own", seed.Hostname, first)
	} else if first, taken := u.instances[seed.InstanceID]; taken && seed.InstanceID != configuration.Unknown {
		fail("instance_id: %q is that of node[%d]; give each its own", seed.InstanceID, first)
	}
	u.hosts[host], u.instances[seed.InstanceID] = i, i
}

// failFunc tells a problem of a node, with the arguments of fmt.Errorf. It begins
// with the attribute.
type failFunc func(format string, args ...any)

// seed is what the node is told; shared is the user data for all nodes.
func (n *Node) seed(shared string, fail failFunc) cloudinit.SeedNode {
	seed := cloudinit.SeedNode{Hostname: n.Hostname, Interface: n.Interface}
	seed.InstanceID = n.instanceID(fail)
	seed.UserData = n.userData(shared, fail)
	n.network(&seed, fail)
	return seed
}

// instanceID is the one in the seed; the host name is checked with it.
func (n *Node) instanceID(fail failFunc) string {
	switch {
	case n.Hostname == "":
		fail("hostname: is missing; write the machine's host name")
	case n.Hostname != configuration.Unknown && !hostName.MatchString(n.Hostname):
		fail("hostname: %q is not a host name", n.Hostname)
	case n.InstanceID != "" && n.InstanceID != configuration.Unknown && !instanceID.MatchString(n.InstanceID):
		fail("instance_id: %q is not one; write letters, digits, dots, underscores and dashes", n.InstanceID)
	}
	if n.InstanceID == "" {
		return "i-" + strings.ToLower(n.Hostname)
	}
	return n.InstanceID
}

// userData is the node's own, or that for all nodes, which is checked already.
func (n *Node) userData(shared string, fail failFunc) []byte {
	switch {
	case n.UserData != "":
		for _, problem := range checkUserData(n.UserData) {
			fail("user_data: %w", problem)
		}
		return []byte(n.UserData)
	case shared == "":
		fail("user_data: is missing, and there is none for all nodes; set one of the two")
	}
	return []byte(shared)
}

// network fills in the addresses.
func (n *Node) network(seed *cloudinit.SeedNode, fail failFunc) {
	seed.Gateway = parseAddress("gateway", n.Gateway, fail)
	for i, s := range n.Nameservers {
		if a := parseAddress(fmt.Sprintf("nameservers[%d]", i), s, fail); a.IsValid() {
			seed.Nameservers = append(seed.Nameservers, a)
		}
	}
	var err error
	switch {
	case n.Address == configuration.Unknown:
	case n.Address != "":
		if seed.Address, err = netip.ParsePrefix(n.Address); err != nil {
			fail("address: %q is not an address with the length of its network; write for example 192.168.1.21/24", n.Address)
		} else if n.Interface == "" {
			fail("interface: is missing; name the one that gets the address")
		}
	case n.Interface != "" || n.Gateway != "" || len(n.Nameservers) > 0:
		fail("address: is missing; without it, interface, gateway and nameservers have no effect")
	}
}

// parseAddress returns the zero address for none, or for one that is not known yet.
func parseAddress(attribute, s string, fail failFunc) netip.Addr {
	if s == "" || s == configuration.Unknown {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		fail("%s: %q is not an address", attribute, s)
	}
	return a
}

// checkUserData says what a node would refuse.
func checkUserData(s string) []error {
	if s == configuration.Unknown {
		return nil
	}
	if !strings.HasPrefix(s, "#cloud-config") {
		return []error{errors.New("does not start with #cloud-config, so cloud-init would pass over it")}
	}
	_, err := cloudinit.Parse([]byte(s), "user_data")
	var bad *cloudinit.InvalidError
	switch {
	case errors.Is(err, cloudinit.ErrNoDocument):
		return []error{errors.New("has no key `xivo`: the node would stay alone; make it with the data source xivo-user-data")}
	case !errors.As(err, &bad):
		return nil
	}
	var problems []error
	for _, p := range bad.Problems {
		problems = append(problems, fmt.Errorf("line %d: %s: %s, %s", p.Line, p.Path, p.What, p.Do))
	}
	return problems
}
