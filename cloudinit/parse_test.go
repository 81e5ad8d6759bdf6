package cloudinit

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	word     = "six red pens on a mat"
	complete = `xivo: {version: 1, peers: [], secret: "` + word + `"}`
)

// prefixes are compared as values.
var prefixes = cmpopts.EquateComparable(netip.Prefix{})

// with is a valid block plus lines of its own.
func with(lines string) string {
	return "xivo:\n  version: 1\n  peers: []\n  secret: " + word + "\n  " + lines + "\n"
}

func TestEveryKeyOfTheDocumentIsRead(t *testing.T) {
	const doc = `#cloud-config
hostname: xivo2
xivo:
  version: 1
  peers: [192.168.1.124, XiVO2.Example.com, 192.168.1.124]
  secret: "four tired bakers sang before dawn"
  network: {mode: overlay, range: 10.200.0.0/20, port: 9999}
  advertise: {interface: eth1}
  identity: keep
  topology: hub
  hub: 192.168.1.124
  directory: {contexts: [default, sales], verify_certificate: true, ca_file: /etc/ssl/mesh.pem}
  consul: {encrypt: false}
  firewall: {enabled: false, allow: [10.0.0.0/8, 192.168.1.7], metadata: open}
runcmd: [ls]
`
	got, err := Parse([]byte(doc), "user-data")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Version:   1,
		Peers:     []string{"192.168.1.124", "xivo2.example.com"},
		Secret:    "four tired bakers sang before dawn",
		Network:   Network{Mode: NetworkOverlay, Range: netip.MustParsePrefix("10.200.0.0/20"), Port: 9999},
		Advertise: Advertise{Interface: "eth1"},
		Identity:  IdentityKeep,
		Topology:  TopologyHub,
		Hub:       "192.168.1.124",
		Directory: Directory{Contexts: []string{"default", "sales"}, VerifyCertificate: true, CAFile: "/etc/ssl/mesh.pem"},
		Firewall:  Firewall{Allow: []string{"10.0.0.0/8", "192.168.1.7"}, Metadata: MetadataOpen},
	}
	if diff := cmp.Diff(want, got, prefixes); diff != "" {
		t.Error(diff)
	}
}

func TestDefaults(t *testing.T) {
	got, err := Parse([]byte(complete), "user-data")
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Version:  1,
		Secret:   word,
		Identity: IdentityAuto,
		Topology: TopologyMesh,
		Network:  networkOf(NetworkOverlay),
		Consul:   Consul{Encrypt: true},
		Firewall: Firewall{Enabled: true},
	}
	if diff := cmp.Diff(want, got, prefixes); diff != "" {
		t.Error(diff)
	}
}

func TestValid(t *testing.T) {
	for name, doc := range map[string]string{
		"beside other cloud-config keys":       "#cloud-config\nusers: [a]\n" + complete + "\npackages: [\t]\n",
		"a bare block":                         "version: 1\npeers: []\nsecret: " + word + "\n",
		"CRLF":                                 strings.ReplaceAll(with("identity: auto"), "\n", "\r\n"),
		"a plain anchor":                       "xivo:\n  version: 1\n  peers: &p [10.0.0.1]\n  secret: " + word + "\n  firewall: {allow: *p}\n",
		"an anchor outside the block":          "nodes: &n [10.0.0.1]\nxivo: {version: 1, peers: *n, secret: \"" + word + "\"}",
		"the markers of cloud-init's copy":     "#cloud-config\n\n# from 1 files\n# part-001\n\n---\n" + complete + "\n...\n",
		"a secret in a file":                   "xivo: {version: 1, peers: [], secret_file: /etc/mesh.secret}",
		"a secret of special characters":       `xivo: {version: 1, peers: [], secret: "$(reboot) '\" *&!%@ é"}`,
		"a secret of exactly the least length": `xivo: {version: 1, peers: [], secret: "0129f5-eb84c7-d3"}`,
		"a base-60 number in quotes":           `xivo: {version: 1, peers: [], secret: "190:20:30:40:50:51"}`,
		"an address to advertise":              with("advertise: 192.168.1.125"),
		"everything said as it is by default":  with("advertise: auto\n  topology: mesh\n  directory: {contexts: auto, verify_certificate: false, ca_file: \"\"}"),
		"a tab in a comment":                   with("identity: auto # a\ttab"),
		"tabs in other keys":                   "write_files:\n- content: |\n    a:\n    \tb\n" + complete,
		"a name with a final dot":              "xivo: {version: 1, peers: [xivo1.example.com.], secret: \"" + word + "\"}",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(doc), "user-data"); err != nil {
				t.Errorf("%v\n%s", err, doc)
			}
		})
	}
}

// TestInvalid has one document per case and what is said about it, word for
// word: position, path, what, what to do.
func TestInvalid(t *testing.T) {
	peers := func(list string) string {
		return `xivo: {version: 1, secret: "` + word + `", peers: [` + list + `]}`
	}
	for _, c := range []struct{ name, doc, want string }{
		{"unknown key", with("peer: [a]"), "d:5:3: xivo: unknown key \"peer\", did you mean `peers`?"},
		{"unknown key, unlike any", with("colour: red"), `d:5:3: xivo: unknown key "colour", remove it; known here: version, peers, secret, secret_file, network, advertise, identity, topology, hub, directory, consul, firewall`},
		{"unknown key in another spelling", with("Secret-File: /x"), "d:5:3: xivo: unknown key \"Secret-File\", did you mean `secret_file`?"},
		{"nested unknown key", with("directory: {verify_certificat: true}"), "d:5:15: xivo.directory: unknown key \"verify_certificat\", did you mean `verify_certificate`?"},
		{"nested key at the top", with("encrypt: true"), "d:5:3: xivo: unknown key \"encrypt\", it belongs below `consul:`"},
		{"key and secret run together", "xivo: {version: 1, peers: [], secret:hunter2hunter2hunter2}", "d:1:7: xivo.secret: is missing, write the secret that the mesh shares, at least 16 characters, or secret_file\nd:1:31: xivo: unknown key \"secret…\", remove it; known here: version, peers, secret, secret_file, network, advertise, identity, topology, hub, directory, consul, firewall"},
		{"misspelt xivo", "Xvio: {version: 1}", "d:1:1: unknown key \"Xvio\", did you mean `xivo`?"},
		{"block at the top of a cloud-config", "#cloud-config\nversion: 1\npeers: []\n", "d:3:1: version and peers stand at the top of a cloud-config, indent the block below `xivo:`"},
		{"merge key", "a: &a {version: 1}\nxivo: {<<: *a, version: 1, peers: [], secret: \"" + word + "\"}", "d:2:8: xivo: merge keys (<<) are not read, write the keys out"},

		{"list for the block", "xivo: [1]", "d:1:7: xivo: is a list, write keys with values: version, peers, secret, secret_file, network, advertise, identity, topology, hub, directory, consul, firewall"},
		{"text for a list", with("firewall: {allow: 10.0.0.1}"), "d:5:21: xivo.firewall.allow: is text, write a list: [a, b], or [] for none"},
		{"number in a list", peers("10"), "d:1:61: xivo.peers[0]: is a number, write text (in quotes)"},
		{"text for true or false", with(`consul: {encrypt: "true"}`), "d:5:21: xivo.consul.encrypt: is text, write true or false"},
		{"nothing for true or false", with("consul: {encrypt: }"), "d:5:12: xivo.consul.encrypt: is empty, write true or false"},
		{"number for a secret", "xivo: {version: 1, peers: [], secret: 12345678901234567}", "d:1:39: xivo.secret: is a number, put it in quotes"},
		{"base-60 number for a secret", "xivo: {version: 1, peers: [], secret: 190:20:30:40:50:51}", "d:1:39: xivo.secret: is a number to base 60 for cloud-init's YAML, put it in quotes"},
		{"mapping for a secret", "xivo: {version: 1, peers: [], secret: {hunter2hunter2hunter2}}", "d:1:39: xivo.secret: is a mapping, put it in quotes"},
		{"tag of its own", with("identity: !mine keep"), "d:5:13: xivo.identity: is of a type of its own, write text (in quotes)"},
		{"key that is a list", with("? [a]\n  : b"), "d:5:5: xivo: a key is a list, write a name"},

		{"key twice", with("version: 1"), "d:5:3: xivo.version: the key is there twice, remove one of the two"},
		{"nested key twice", with("consul: {encrypt: true, encrypt: false}"), "d:5:27: xivo.consul.encrypt: the key is there twice, remove one of the two"},
		{"block twice", complete + "\n" + complete, "d:2:1: xivo: the key is there twice, merge the two into one"},

		{"no version", `xivo: {peers: [], secret: "` + word + `"}`, "d:1:7: xivo.version: is missing, write `version: 1`"},
		{"no peers", `xivo: {version: 1, secret: "` + word + `"}`, "d:1:7: xivo.peers: is missing, list any nodes of the mesh, or write `peers: []` for the first one"},
		{"no secret", "xivo: {version: 1, peers: []}", "d:1:7: xivo.secret: is missing, write the secret that the mesh shares, at least 16 characters, or secret_file"},
		{"both secrets", with("secret_file: /x"), "d:5:16: xivo.secret_file: there is a secret, too, keep one of the two"},
		{"short secret", `xivo: {version: 1, peers: [], secret: "fifteen letters"}`, "d:1:39: xivo.secret: has 15 characters, fewer than 16, take one that `xivo-firstboot secret` prints"},
		{"empty secret", "xivo: {version: 1, peers: [], secret: }", "d:1:31: xivo.secret: is empty, write one, in quotes"},
		{"secret with a newline", "xivo:\n  version: 1\n  peers: []\n  secret: |\n    " + word + "\n", "d:4:11: xivo.secret: holds a line break or another control character, write it on one line"},
		{"secret with space around", `xivo: {version: 1, peers: [], secret: " ` + word + `"}`, "d:1:39: xivo.secret: starts or ends with space, remove that"},
		{"the secret in place of its file", "xivo: {version: 1, peers: [], secret_file: hunter2hunter2hunter2}", "d:1:44: xivo.secret_file: is not an absolute path, start it with /"},
		{"version 2 hides what it may allow", "xivo: {version: 2, meshes: []}", "d:1:17: xivo.version: is \"2\", and this program knows 1 only, write 1, or install a newer xivo-firstboot"},
		{"version as text", `xivo: {version: "1", peers: [], secret: "` + word + `"}`, "d:1:17: xivo.version: is text, write the number 1"},
		{"reserved tls", with("tls: {}"), "d:5:3: xivo.tls: is reserved: certificates of the mesh are not managed yet, remove it"},
		{"reserved wizard", with("wizard: {}"), "d:5:3: xivo.wizard: is reserved: XiVO's wizard is passed by a person for now, remove it"},
		{"reserved previous_secret", with("previous_secret: hunter2hunter2hunter2"), "d:5:3: xivo.previous_secret: is reserved: the secret of a mesh cannot be changed while it runs yet, remove it"},
		{"reserved hooks", with("hooks: []"), "d:5:3: xivo.hooks: is reserved: there are no hooks yet, remove it"},

		{"empty block", "#cloud-config\nxivo:\n", "d:2:1: xivo: the block is empty, write at least version, peers and secret"},
		{"BOM", "\ufeff" + complete, "d:1:1: the file starts with a byte order mark, save it as UTF-8 without one"},
		{"UTF-16", "\xff\xfex\x00", "d:1:1: the file starts with a byte order mark, save it as UTF-8 without one"},
		{"bytes that are no text", "a: b\nc: d\xff", "d:2:5: the text is not UTF-8, save the file as UTF-8"},
		{"tab in the indentation", "xivo:\n\tversion: 1\n", "d:2:1: a tab in the indentation, indent with spaces"},
		{"tab between key and value", with("identity:\tkeep"), "d:5:12: xivo: a tab, use spaces"},
		{"no YAML", "xivo: {version: 1\n", "d:1:1: this is not YAML: did not find expected ',' or '}', correct it; put text with special characters in quotes"},
		{"secret that looks like an alias", "xivo:\n  secret: *hunter2hunter2\n", "d:2:11: an alias that no anchor defines, put text that starts with * in quotes"},
		{"two documents", complete + "\n---\n" + complete, "d:2:1: a second YAML document starts here, write one document only"},
		{"text for the file", "hello world", "d:1:1: the file is text, write keys with values, `xivo:` among them"},
		{"anchor that contains itself", "a: &a [*a]\n" + complete, "d:1:8: the aliases stand for more than 100000 values, write the values out"},

		{"URL", peers(`"http://root:hunter2@192.168.1.124:5672/x"`), "d:1:61: xivo.peers[0]: is a URL, write the host only: 192.168.1.124"},
		{"URL without a host", peers(`"http://"`), "d:1:61: xivo.peers[0]: is a URL, write a host name or an IPv4 address"},
		{"IPv6", peers(`"2001:db8::1"`), `d:1:61: xivo.peers[0]: "2001:db8::1" is an IPv6 address, which xivo-dird cannot parse, write a host name or an IPv4 address`},
		{"IPv6 in brackets", peers(`"[2001:db8::1]"`), `d:1:61: xivo.peers[0]: "[2001:db8::1]" is an IPv6 address, which xivo-dird cannot parse, write a host name or an IPv4 address`},
		{"IPv4 as IPv6", peers(`"::ffff:10.0.0.1"`), `d:1:61: xivo.peers[0]: "::ffff:10.0.0.1" is an IPv6 address, which xivo-dird cannot parse, write a host name or an IPv4 address`},
		{"port", peers(`"10.0.0.1:5672"`), `d:1:61: xivo.peers[0]: "10.0.0.1:5672" has a port, write the host only: 10.0.0.1`},
		{"network", peers("10.0.0.0/8"), `d:1:61: xivo.peers[0]: "10.0.0.0/8" is a network, list its nodes one by one`},
		{"user name", peers(`"root:hunter2@10.0.0.1"`), `d:1:61: xivo.peers[0]: carries a user name, write the host only`},
		{"too large a number", peers("10.0.0.256"), `d:1:61: xivo.peers[0]: "10.0.0.256" is neither an IPv4 address nor a host name, write four numbers from 0 to 255, without leading zeros`},
		{"leading zeros", peers("192.168.001.124"), `d:1:61: xivo.peers[0]: "192.168.001.124" is neither an IPv4 address nor a host name, write four numbers from 0 to 255, without leading zeros`},
		{"loopback", peers("127.0.0.1"), `d:1:61: xivo.peers[0]: "127.0.0.1" cannot be reached from another machine, write an address of the network that the nodes share`},
		{"any address", peers("0.0.0.0"), `d:1:61: xivo.peers[0]: "0.0.0.0" cannot be reached from another machine, write an address of the network that the nodes share`},
		{"localhost", peers("localhost"), `d:1:61: xivo.peers[0]: "localhost" is another machine on every node, write a name that means the same everywhere`},
		{"shell", peers(`"$(reboot)"`), `d:1:61: xivo.peers[0]: "$(reboot)" is not a host name, write a host name or an IPv4 address`},
		{"quotes", peers(`'"x"'`), `d:1:61: xivo.peers[0]: "\"x\"" is not a host name, write a host name or an IPv4 address`},
		{"newline", peers(`"a\nb"`), `d:1:61: xivo.peers[0]: "a\nb" is not a host name, write a host name or an IPv4 address`},
		{"accent", peers("xivó"), `d:1:61: xivo.peers[0]: "xivó" is not a host name, write a host name or an IPv4 address`},
		{"long name", peers(strings.Repeat("x", 200)), `d:1:61: xivo.peers[0]: "` + strings.Repeat("x", 60) + `…" is not a host name, write a host name or an IPv4 address`},
		{"empty peer", peers(`""`), "d:1:61: xivo.peers[0]: is empty, write a host name or an IPv4 address"},

		{"identity", with("identity: regenrate"), "d:5:13: xivo.identity: \"regenrate\" is not known, did you mean `regenerate`?"},
		{"topology", with("topology: star"), `d:5:13: xivo.topology: "star" is not known, write one of mesh, ring, hub`},
		{"hub without a hub", with("topology: hub"), "d:5:13: xivo.hub: is missing, name the peer in the middle, or choose another topology"},
		{"a hub in a mesh", with("hub: 10.0.0.1"), "d:5:8: xivo.hub: has no meaning in a mesh, write `topology: hub`, or remove it"},
		{"advertise a name", with("advertise: xivo1"), `d:5:14: xivo.advertise: "xivo1" is not an IPv4 address, write one, for example 192.168.1.124`},
		{"advertise loopback", with("advertise: 127.0.0.1"), `d:5:14: xivo.advertise: "127.0.0.1" cannot be reached from another machine, write an address of the network that the nodes share`},
		{"advertise an empty mapping", with("advertise: {}"), "d:5:14: xivo.advertise.interface: is missing, write auto, an IPv4 address of this machine, or {interface: eth1}"},
		{"advertise the interface lo", with("advertise: {interface: lo}"), `d:5:26: xivo.advertise.interface: "lo" cannot be reached from another machine, take the interface of the network that the nodes share`},
		{"no contexts", with("directory: {contexts: []}"), "d:5:25: xivo.directory.contexts: is an empty list: nobody would see the peers' contacts, write auto, or name contexts"},
		{"context of two words", with(`directory: {contexts: ["a,b"]}`), `d:5:26: xivo.directory.contexts[0]: "a,b" is not the name of a context, take one that XiVO's web interface shows`},
		{"ca_file without a check", with("directory: {ca_file: /x}"), "d:5:14: xivo.directory.ca_file: has no effect without verify_certificate, write `verify_certificate: true`, or remove it"},
		{"host bits", with("firewall: {allow: [10.0.0.1/8]}"), `d:5:22: xivo.firewall.allow[0]: "10.0.0.1/8" has host bits set, write 10.0.0.0/8, or the address alone`},
		{"IPv6 to allow", with(`firewall: {allow: ["::/0"]}`), `d:5:22: xivo.firewall.allow[0]: "::/0" is neither an IPv4 address nor a network, write for example 192.168.1.7 or 192.168.1.0/24`},
	} {
		t.Run(c.name, func(t *testing.T) {
			config, err := Parse([]byte(c.doc), "d")
			var bad *InvalidError
			if !errors.As(err, &bad) || config != nil {
				t.Fatalf("accepted, or another error: %v\n%s", err, c.doc)
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Errorf("%s\n%s", diff, c.doc)
			}
			if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), word) {
				t.Error("the error tells the secret")
			}
		})
	}
}

func TestAllProblemsAreListedInTheOrderOfTheFile(t *testing.T) {
	const doc = "#cloud-config\nxivo:\n  version: 1\n  peers: [ok, \"::1\", \"http://x\"]\n  secret: short\n  tls: {}\n  topolgy: ring\n"
	_, err := Parse([]byte(doc), "user-data")
	want := "user-data:4:15: xivo.peers[1]: \"::1\" is an IPv6 address, which xivo-dird cannot parse, write a host name or an IPv4 address\n" +
		"user-data:4:22: xivo.peers[2]: is a URL, write the host only: x\n" +
		"user-data:5:11: xivo.secret: has 5 characters, fewer than 16, take one that `xivo-firstboot secret` prints\n" +
		"user-data:6:3: xivo.tls: is reserved: certificates of the mesh are not managed yet, remove it\n" +
		"user-data:7:3: xivo: unknown key \"topolgy\", did you mean `topology`?"
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
}

func TestNoDocument(t *testing.T) {
	for name, doc := range map[string]string{
		"empty file":                    "",
		"blank file":                    "\n\n",
		"comments only":                 "#cloud-config\n# nothing\n",
		"an empty YAML document":        "---\n...\n",
		"other keys of cloud-init only": "#cloud-config\nhostname: xivo\n",
		"a key like ours of another":    "#cloud-config\nconsul: {}\nversion: 3\n",
		"an empty mapping":              "#cloud-config\n{}\n",
		"write_files of another file":   "write_files: [{path: /etc/motd, content: hello}]",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(doc), "d"); !errors.Is(err, ErrNoDocument) {
				t.Errorf("want ErrNoDocument, got: %v", err)
			}
		})
	}
}

func TestLargeAndHostileFilesAreRefused(t *testing.T) {
	laughs := "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c, ", c-1), 10), ", "))
	}
	for name, doc := range map[string]string{
		"1 MB of junk":           strings.Repeat("junk ", 200_000),
		"just above the limit":   complete + "\n#" + strings.Repeat("x", MaxSize),
		"a billion laughs":       laughs + complete,
		"the bomb in the block":  laughs + "xivo: {version: 1, secret: \"" + word + "\", peers: *j}",
		"deeply nested":          strings.Repeat("[", 100_000),
		"deeply nested mappings": "xivo: " + strings.Repeat("{a: ", 100_000),
		"a mapping in itself":    "xivo: &x {version: 1, peers: [], secret: \"" + word + "\", consul: *x}",
	} {
		t.Run(name, func(t *testing.T) {
			var bad *InvalidError
			if _, err := Parse([]byte(doc), "d"); !errors.As(err, &bad) {
				t.Errorf("want an InvalidError, got: %v", err)
			} else if len(err.Error()) > 2000 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestPositionsInsideWriteFilesAreThoseOfTheOuterFile(t *testing.T) {
	const doc = `#cloud-config
write_files:
- path: /etc/xivo-firstboot/config.yml
  permissions: "0600"
  content: |

    version: 1
    peers: ["::1"]
    secret: "six red pens on a mat"
`
	_, err := Parse([]byte(doc), "user-data")
	const want = `user-data:8:13: xivo.peers[0]: "::1" is an IPv6 address, which xivo-dird cannot parse, write a host name or an IPv4 address`
	if diff := cmp.Diff(want, fmt.Sprint(err)); diff != "" {
		t.Error(diff)
	}
}

func TestWhatCloudInitWouldWriteForAllToReadIsRefused(t *testing.T) {
	for permissions, ok := range map[string]bool{
		`permissions: "0600"`: true, `permissions: '600'`: true, `permissions: 0600`: true, `permissions: 0o600`: true, `permissions: "0400"`: true,
		`owner: root:root`: false, `permissions: "0644"`: false, `permissions: 600`: false, `permissions: "0640"`: false, `permissions: secret`: false, `permissions: ""`: false,
	} {
		t.Run(permissions, func(t *testing.T) {
			doc := "#cloud-config\nwrite_files:\n- path: /etc/xivo-firstboot/config.yml\n  " + permissions + "\n  content: |\n    version: 1\n    peers: []\n    secret: " + word + "\n"
			_, err := Parse([]byte(doc), "d")
			if ok != (err == nil) {
				t.Fatalf("%v", err)
			}
			if want := regexp.MustCompile(`^d:[34]:\d+: write_files: others could read the secret in /etc/xivo-firstboot/config.yml, write permissions: "0600"$`); err != nil && !want.MatchString(err.Error()) {
				t.Errorf("%v, want %s", err, want)
			}
			// With what else is wrong, in the order of the file.
			_, err = Parse([]byte(doc+"    topolgy: ring\n"), "d")
			if lines := strings.Split(fmt.Sprint(err), "\n"); len(lines) != 1 && ok || len(lines) != 2 && !ok || !strings.Contains(lines[len(lines)-1], "topolgy") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAloneIsItsOwn(t *testing.T) {
	a, b := Alone(), Alone()
	if a.Secret == b.Secret {
		t.Error("two nodes alone have the same secret")
	}
	if checkSecret(a.Secret.Reveal()) != nil || checkStrength(a.Secret.Reveal()) != nil || len(a.Peers) != 0 {
		t.Errorf("not a valid document: %+v", a)
	}
	if s := fmt.Sprintf("%v %+v %#v", a, a, a); strings.Contains(s, a.Secret.Reveal()) {
		t.Errorf("printed with its secret: %s", s)
	}
}

func FuzzParse(f *testing.F) {
	for _, doc := range []string{
		"", complete, with("advertise: {interface: eth0}"), with("topology: hub\n  hub: x"),
		"version: 1\npeers: [a, b]\nsecret_file: /x\n", "a: &a [*a]\nxivo: *a", "xivo:\n\tversion: 1", "\ufeff", "xivo: &x {version: *x}",
		string(UserDataFile(&Config{Version: 1, Secret: secret.Secret(word)})), "---\n---\n", "? a\n: b", "xivo: {<<: {version: 1}}", "- *x", "xivo: !!binary aGk=",
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data, "d")
		var bad *InvalidError
		switch {
		case err == nil:
			again, err := Parse(UserData(c), "again")
			if err != nil {
				t.Fatalf("accepted, but not when rendered: %v", err)
			}
			if diff := cmp.Diff(c, again, prefixes); diff != "" {
				t.Fatalf("rendered and read again it differs: %s", diff)
			}
		case errors.As(err, &bad):
			for _, p := range bad.Problems {
				if p.Line < 1 || p.Column < 1 || p.What == "" || p.Do == "" || strings.Contains(p.String(), "\n") {
					t.Errorf("not a problem that helps: %q", p)
				}
			}
		case !errors.Is(err, ErrNoDocument):
			t.Errorf("neither invalid nor absent: %v", err)
		}
	})
}
