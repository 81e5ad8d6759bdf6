package cloudinit

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// configs generates documents that Parse accepts.
func configs(t *rapid.T) *Config {
	hosts := rapid.SampledFrom([]string{"192.168.1.124", "192.168.1.125", "xivo1", "xivo-2.example.com", "yes", "null", "10.0.0.1", "a1.b2"})
	distinct := func(g *rapid.Generator[string], label string) []string {
		all := rapid.SliceOfNDistinct(g, 0, 4, rapid.ID[string]).Draw(t, label)
		if len(all) == 0 {
			return nil
		}
		return all
	}
	secrets := rapid.Custom(func(t *rapid.T) secret.Secret {
		s := rapid.OneOf(
			rapid.StringMatching(`[!-~][ -~]{14,40}[!-~]`),
			rapid.StringMatching(`[0-9:.e_+-]{16,30}`),
			rapid.SampledFrom([]string{"190:20:30:40:50:51", "2024-01-01 10:00:00", "*hunter2-sings-at-noon", "# no comment at all", `"quoted" and 'quoted'`, "é£€漢字ñøß§µ漢é字éáíó", "0o1630257416352047", "key: value: key: value"}),
		).Filter(func(s string) bool { return checkSecret(s) == nil && checkStrength(s) == nil }).Draw(t, "secret")
		return secret.Secret(s)
	})

	c := &Config{
		Version:  1,
		Peers:    distinct(hosts, "peers"),
		Identity: rapid.SampledFrom([]string{IdentityAuto, IdentityKeep, IdentityRegenerate}).Draw(t, "identity"),
		Topology: rapid.SampledFrom([]string{TopologyMesh, TopologyRing, TopologyHub}).Draw(t, "topology"),
		Directory: Directory{
			Contexts:          distinct(rapid.StringMatching(`[A-Za-z0-9_.-]{1,39}`), "contexts"),
			VerifyCertificate: rapid.Bool().Draw(t, "verify"),
		},
		Consul: Consul{Encrypt: rapid.Bool().Draw(t, "encrypt")},
		Firewall: Firewall{
			Enabled: rapid.Bool().Draw(t, "enabled"),
			Allow:   distinct(rapid.SampledFrom([]string{"10.0.0.0/8", "192.168.1.7", "0.0.0.0/0"}), "allow"),
		},
	}
	if rapid.Bool().Draw(t, "file") {
		c.SecretFile = rapid.StringMatching(`/[a-z #:'"]{1,20}/x`).Filter(func(s string) bool { return filepath.Clean(s) == s }).Draw(t, "secret_file")
	} else {
		c.Secret = secrets.Draw(t, "secret")
	}
	c.Network.Mode = rapid.SampledFrom([]string{NetworkOverlay, NetworkDirect}).Draw(t, "network")
	c.Network.Port = rapid.SampledFrom([]int{1, 9484, 65535}).Draw(t, "port")
	switch c.Network.Mode {
	case NetworkOverlay:
		c.Network.Range = netip.MustParsePrefix(rapid.SampledFrom([]string{"100.88.0.0/16", "172.16.0.0/12", "192.168.7.252/30"}).Draw(t, "range"))
	case NetworkDirect:
		c.Network.Interface = rapid.SampledFrom([]string{"wg0", "123", "yes", "a-very.long_one"}).Draw(t, "network's interface")
		c.Network.Shared = rapid.Bool().Draw(t, "shared")
	}
	c.Firewall.Metadata = rapid.SampledFrom([]string{"", MetadataOpen}).Draw(t, "metadata")
	switch rapid.IntRange(0, 2).Draw(t, "advertise") {
	case 1:
		c.Advertise.Address = "192.168.1.125"
	case 2:
		c.Advertise.Interface = rapid.StringMatching(`[a-z]{2,4}[0-9._-]{0,9}`).Draw(t, "interface")
		if c.Advertise.Interface == "lo" {
			c.Advertise.Interface = "eth0"
		}
	}
	if c.Topology == TopologyHub {
		c.Hub = hosts.Draw(t, "hub")
	}
	if c.Directory.VerifyCertificate && rapid.Bool().Draw(t, "own CA") {
		c.Directory.CAFile = "/etc/ssl/mesh.pem"
	}
	return c
}

func TestRenderedDocumentsReadTheSame(t *testing.T) {
	for name, render := range map[string]func(*Config) []byte{"under the key xivo": UserData, "in write_files": UserDataFile} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				c := configs(t)
				data := render(c)
				if !strings.HasPrefix(string(data), "#cloud-config\n") {
					t.Fatalf("cloud-init would not take it:\n%s", data)
				}
				again, err := Parse(data, "rendered")
				if err != nil {
					t.Fatalf("%v\n%s", err, data)
				}
				if diff := cmp.Diff(c, again, prefixes); diff != "" {
					t.Fatalf("%s\n%s", diff, data)
				}
			})
		})
	}
}

func TestASecretThatCameFromAFileIsWrittenItself(t *testing.T) {
	c := Alone()
	c.SecretFile = "/etc/mesh.secret"
	again, err := Parse(UserData(c), "kept")
	if err != nil || again.Secret != c.Secret || again.SecretFile != "" {
		t.Errorf("%v: %+v", err, again)
	}
}

func TestUserDataFileIsReadableForRootOnly(t *testing.T) {
	var doc struct {
		WriteFiles []struct{ Path, Owner, Permissions, Content string } `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(UserDataFile(Alone()), &doc); err != nil {
		t.Fatal(err)
	}
	if f := doc.WriteFiles[0]; f.Path != ConfigFile || f.Owner != "root:root" || f.Permissions != "0600" {
		t.Errorf("%s %s %s", f.Path, f.Owner, f.Permissions)
	}
}

func TestSeed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "seed")
	n := SeedNode{
		InstanceID:  "clone-1",
		Hostname:    "xivo1",
		Interface:   "host0",
		Address:     netip.MustParsePrefix("10.99.0.11/24"),
		Gateway:     netip.MustParseAddr("10.99.0.1"),
		Nameservers: []netip.Addr{netip.MustParseAddr("9.9.9.9")},
		UserData:    []byte("#cloud-config\n" + complete + "\n"),
	}
	if err := Seed(dir, n); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"meta-data": "instance-id: clone-1\nlocal-hostname: xivo1\n",
		"user-data": "#cloud-config\n" + complete + "\n",
		"network-config": `version: 1
config:
    - type: physical
      name: host0
      subnets:
        - type: static
          address: 10.99.0.11/24
          gateway: 10.99.0.1
          dns_nameservers:
            - 9.9.9.9
`,
	} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if st, _ := os.Stat(filepath.Join(dir, name)); st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, st.Mode())
		}
	}

	// Another seed in its place leaves nothing of the first.
	if err := Seed(dir, SeedNode{InstanceID: "123", Hostname: "xivo1"}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "network-config")); err == nil {
		t.Error("the network-config of the first seed is still there")
	}
	meta, _ := os.ReadFile(filepath.Join(dir, "meta-data"))
	if want := "instance-id: \"123\"\nlocal-hostname: xivo1\n"; string(meta) != want {
		t.Errorf("got %q, want %q", meta, want)
	}
}

func TestSeedRefuses(t *testing.T) {
	for name, n := range map[string]SeedNode{
		"no instance id":                         {Hostname: "a"},
		"an instance id that cloud-init invents": {InstanceID: "nocloud", Hostname: "a"},
		"an instance id that is a path":          {InstanceID: "../x", Hostname: "a"},
		"no host name":                           {InstanceID: "i-1"},
		"a host name of two words":               {InstanceID: "i-1", Hostname: "a b"},
		"an address for no interface":            {InstanceID: "i-1", Hostname: "a", Address: netip.MustParsePrefix("10.0.0.1/8")},
	} {
		dir := filepath.Join(t.TempDir(), "seed")
		if err := Seed(dir, n); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: something was written", name)
		}
	}
}
