package cloudinit

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"
)

// SeedNode is what one machine is told by its NoCloud seed.
type SeedNode struct {
	// InstanceID makes a clone a clone: unique for each machine, the same for as
	// long as that lives.
	InstanceID string
	// Hostname is its host name, with or without a domain.
	Hostname string
	// Interface gets Address, and Gateway as the default route unless that is
	// the zero value. Without an Address the network is left to cloud-init, and
	// no network-config is written.
	Interface   string
	Address     netip.Prefix
	Gateway     netip.Addr
	Nameservers []netip.Addr
	// UserData is written as it is. Nil says nothing.
	UserData []byte
}

// Seed writes a NoCloud seed into dir, which is made if needed: user-data,
// meta-data and network-config (version 1, the form that older releases read,
// too). Only the owner may read them. An earlier seed there is replaced.
func Seed(dir string, n SeedNode) error {
	files, err := n.files()
	if err != nil {
		return fmt.Errorf("cloudinit: seed %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cloudinit: seed: %w", err)
	}
	for name, content := range files {
		// Removed first: a file that is there would keep its mode.
		name = filepath.Join(dir, name)
		if err := os.RemoveAll(name); err != nil {
			return fmt.Errorf("cloudinit: seed: %w", err)
		}
		if content == nil {
			continue
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return fmt.Errorf("cloudinit: seed: %w", err)
		}
	}
	return nil
}

// files returns the content of each file of a seed, nil for one not to be there.
func (n SeedNode) files() (map[string][]byte, error) {
	if !realInstance(n.InstanceID) || strings.ContainsAny(n.InstanceID, "/ \t\r\n") {
		return nil, fmt.Errorf("instance id %q is not one: it names a folder, is unique for each machine, and is none of those that cloud-init makes up", n.InstanceID)
	}
	name := strings.ToLower(n.Hostname)
	if !hostName.MatchString(name) || numeric.MatchString(name) {
		return nil, fmt.Errorf("%q is not a host name", n.Hostname)
	}
	files := map[string][]byte{
		"meta-data":      render(mapping{{"instance-id", n.InstanceID}, {"local-hostname", n.Hostname}}),
		"user-data":      n.UserData,
		"network-config": nil,
	}
	if n.UserData == nil {
		// NoCloud takes no seed without this file.
		files["user-data"] = []byte("#cloud-config\n{}\n")
	}
	if n.Address.IsValid() {
		if n.Interface == "" {
			return nil, fmt.Errorf("address %s: no interface is named for it", n.Address)
		}
		files["network-config"] = n.networkConfig()
	}
	return files, nil
}

// networkConfig gives the interface the address, in version 1 of cloud-init's
// network configuration.
func (n SeedNode) networkConfig() []byte {
	subnet := mapping{{"type", "static"}, {"address", n.Address.String()}}
	if n.Gateway.IsValid() {
		subnet = append(subnet, entry{"gateway", n.Gateway.String()})
	}
	if len(n.Nameservers) > 0 {
		var servers []string
		for _, a := range n.Nameservers {
			servers = append(servers, a.String())
		}
		subnet = append(subnet, entry{"dns_nameservers", servers})
	}
	return render(mapping{
		{"version", 1},
		{"config", []mapping{{
			{"type", "physical"},
			{"name", n.Interface},
			{"subnets", []mapping{subnet}},
		}}},
	})
}

// UserData renders the document as a cloud-config with the key `xivo`. The
// secrets are in it: keep it where only root reads it. A secret that came from
// a SecretFile is written itself, so that the document stands alone.
// Parse gives back what was rendered.
func UserData(c *Config) []byte {
	return append([]byte("#cloud-config\n"), render(mapping{{blockKey, block(c)}})...)
}

// UserDataFile renders the document as a cloud-config that writes ConfigFile.
// It says the same as UserData; the releases of cloud-init that complain about
// a key `xivo` take it without a word.
func UserDataFile(c *Config) []byte {
	return append([]byte("#cloud-config\n"), render(mapping{{"write_files", []mapping{{
		{"path", ConfigFile},
		{"owner", "root:root"},
		{"permissions", "0600"},
		{"content", string(render(block(c)))},
	}}}})...)
}

// block is the document as it is kept.
func block(c *Config) mapping { return written((&reader{}).fields(c)) }

// mapping is a YAML mapping whose keys stay in order.
type mapping []entry

type entry struct {
	key   string
	value any
}

// MarshalYAML implements yaml.Marshaler.
func (m mapping) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, e := range m {
		var value yaml.Node
		if err := value.Encode(e.value); err != nil {
			return nil, err
		}
		key := &yaml.Node{Kind: yaml.ScalarNode, Value: e.key}
		n.Content = append(n.Content, key, &value)
	}
	return n, nil
}

// render cannot fail: a mapping holds texts, numbers, truths and lists of such.
func render(m mapping) []byte {
	out, err := yaml.Marshal(m)
	if err != nil {
		panic(err)
	}
	return out
}
