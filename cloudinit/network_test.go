package cloudinit

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestANetworkGetsTheDefaultsOfItsMode(t *testing.T) {
	own := netip.MustParsePrefix("100.88.0.0/16")
	for lines, want := range map[string]Network{
		"network: {}":                             {Mode: NetworkOverlay, Range: own, Port: 9484},
		"network: {port: 9999}":                   {Mode: NetworkOverlay, Range: own, Port: 9999},
		"network: {mode: overlay}":                {Mode: NetworkOverlay, Range: own, Port: 9484},
		"network: {port: 1024, mode: overlay}":    {Mode: NetworkOverlay, Range: own, Port: 1024},
		"network: {mode: direct, interface: wg0}": {Mode: NetworkDirect, Port: 9484, Interface: "wg0"},
		"network: {mode: overlay, port: 9484}":    {Mode: NetworkOverlay, Range: own, Port: 9484},
		"network: {mode: overlay, port: 65535}":   {Mode: NetworkOverlay, Range: own, Port: 65535},
		"network: {mode: overlay, port: 9503}":    {Mode: NetworkOverlay, Range: own, Port: 9503},
		"network: {mode: overlay, range: 10.0.0.0/8}": {
			Mode: NetworkOverlay, Range: netip.MustParsePrefix("10.0.0.0/8"), Port: 9484},
		"network: {mode: overlay, range: 192.168.7.4/30}": {
			Mode: NetworkOverlay, Range: netip.MustParsePrefix("192.168.7.4/30"), Port: 9484},
		"network: {interface: a-very.long_one, shared: true, mode: direct, port: 51820}": {
			Mode: NetworkDirect, Port: 51820, Interface: "a-very.long_one", Shared: true},
	} {
		t.Run(lines, func(t *testing.T) {
			got, err := Parse([]byte(with(lines)), "d")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got.Network, prefixes); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestNetworkInvalid has what is said about each, word for word.
func TestNetworkInvalid(t *testing.T) {
	overlay := func(rest string) string { return with("network: {mode: overlay, " + rest + "}") }
	peers := func(network, list string) string {
		return "xivo:\n  version: 1\n  secret: " + word + "\n  network: " + network + "\n  peers: " + list + "\n"
	}
	const (
		space = "take a part of 100.64.0.0/10, 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16"
		lies  = "it is where a node is reached from outside, before it is in the mesh, write a name or an address that it has outside, or take another range"
	)
	for _, c := range []struct{ name, doc, want string }{
		{"text for the network", with("network: overlay"), "d:5:12: xivo.network: is text, write keys with values: mode, range, port, interface, shared"},
		{"unknown key", with("network: {mod: overlay}"), "d:5:13: xivo.network: unknown key \"mod\", did you mean `mode`?"},
		{"range at the top", with("range: 10.0.0.0/8"), "d:5:3: xivo: unknown key \"range\", it belongs below `network:`"},
		{"a key twice", overlay("mode: direct"), "d:5:28: xivo.network.mode: the key is there twice, remove one of the two"},
		{"misspelt mode", with("network: {mode: ovrelay, interface: wg0}"), "d:5:19: xivo.network.mode: \"ovrelay\" is not known, did you mean `overlay`?"},
		{"unknown mode", with("network: {mode: lan}"), `d:5:19: xivo.network.mode: "lan" is not known, write one of overlay, direct`},
		{"nothing for a mode", with("network: {mode: }"), "d:5:13: xivo.network.mode: is empty, write text (in quotes)"},

		{"range, IPv6", overlay(`range: "fd00::/64"`), `d:5:35: xivo.network.range: "fd00::/64" is not an IPv4 network, write a network that is used nowhere else, for example 100.88.0.0/16`},
		{"range, an address", overlay("range: 10.0.0.1"), `d:5:35: xivo.network.range: "10.0.0.1" is not an IPv4 network, write a network that is used nowhere else, for example 100.88.0.0/16`},
		{"range, empty", overlay(`range: ""`), `d:5:35: xivo.network.range: "" is not an IPv4 network, write a network that is used nowhere else, for example 100.88.0.0/16`},
		{"range, too large", overlay("range: 0.0.0.0/7"), `d:5:35: xivo.network.range: "0.0.0.0/7" is a /7, take one from /8 to /30`},
		{"range, too small", overlay("range: 10.0.0.0/31"), `d:5:35: xivo.network.range: "10.0.0.0/31" is a /31, take one from /8 to /30`},
		{"range, host bits", overlay("range: 10.0.0.1/8"), `d:5:35: xivo.network.range: "10.0.0.1/8" has host bits set, write 10.0.0.0/8`},
		{"range of the Internet", overlay("range: 8.8.0.0/16"), `d:5:35: xivo.network.range: "8.8.0.0/16" is not private or shared address space: its addresses mean something elsewhere, ` + space},
		{"range of loopback", overlay("range: 127.0.0.0/8"), `d:5:35: xivo.network.range: "127.0.0.0/8" is not private or shared address space: its addresses mean something elsewhere, ` + space},
		{"range with private space and more", overlay("range: 192.168.0.0/15"), `d:5:35: xivo.network.range: "192.168.0.0/15" is not private or shared address space: its addresses mean something elsewhere, ` + space},

		{"port, text", overlay(`port: "9484"`), "d:5:34: xivo.network.port: is text, write a number from 1 to 65535"},
		{"port 0", overlay("port: 0"), `d:5:34: xivo.network.port: "0" is not a port, write a number from 1 to 65535`},
		{"port, negative", overlay("port: -1"), `d:5:34: xivo.network.port: "-1" is not a port, write a number from 1 to 65535`},
		{"port, too high", overlay("port: 65536"), `d:5:34: xivo.network.port: "65536" is not a port, write a number from 1 to 65535`},
		{"port to base 8", overlay("port: 01750"), `d:5:34: xivo.network.port: "01750" is not a port, write a number from 1 to 65535`},
		{"port to base 16", overlay("port: 0x2505"), `d:5:34: xivo.network.port: "0x2505" is not a port, write a number from 1 to 65535`},
		{"port, no whole number", overlay("port: 9484.5"), "d:5:34: xivo.network.port: is a number, write a number from 1 to 65535"},
		{"port of SIP", overlay("port: 5060"), "d:5:34: xivo.network.port: 5060 belongs to SIP, take another, or leave it out for 9484"},
		{"port of ours", overlay("port: 9483"), "d:5:34: xivo.network.port: 9483 belongs to the members of the mesh, take another, or leave it out for 9484"},
		{"port within several", overlay("port: 8301"), "d:5:34: xivo.network.port: 8301 belongs to Consul, take another, or leave it out for 9484"},

		{"interface in overlay", overlay("interface: wg0"), "d:5:39: xivo.network.interface: has no meaning in the mode overlay: it has an interface of its own, write `mode: direct`, or remove it"},
		{"shared in overlay", overlay("shared: false"), "d:5:36: xivo.network.shared: has no meaning in the mode overlay: nobody shares it, write `mode: direct`, or remove it"},
		{"range in direct", with("network: {range: 10.0.0.0/8, mode: direct, interface: wg0}"), "d:5:20: xivo.network.range: has no meaning in the mode direct: the addresses there are those of the interface, write `mode: overlay`, or remove it"},
		{"direct without an interface", with("network: {mode: direct}"), "d:5:12: xivo.network.interface: is missing, name the interface of the network that the nodes share, for example wg0"},
		{"direct with a path", with("network: {mode: direct, interface: a/b}"), "d:5:38: xivo.network.interface: \"a/b\" is not the name of a network interface, take one that `ip link` shows"},
		{"direct with a long name", with("network: {mode: direct, interface: sixteen-letters-}"), "d:5:38: xivo.network.interface: \"sixteen-letters-\" is not the name of a network interface, take one that `ip link` shows"},
		{"direct with a pattern of iptables", with("network: {mode: direct, interface: wg+}"), "d:5:38: xivo.network.interface: \"wg+\" is not the name of a network interface, take one that `ip link` shows"},
		{"direct through lo", with("network: {mode: direct, interface: lo}"), `d:5:38: xivo.network.interface: "lo" cannot be reached from another machine, take the interface of the network that the nodes share`},
		{"direct with text for shared", with("network: {mode: direct, interface: wg0, shared: \"no\"}"), "d:5:51: xivo.network.shared: is text, write true or false"},
		{"interface without a mode", with("network: {interface: wg0}"), "d:5:24: xivo.network.interface: has no meaning in the mode overlay: it has an interface of its own, write `mode: direct`, or remove it"},

		{"peer in the range", peers("{mode: overlay}", "[192.168.1.1, 100.88.3.4]"), `d:5:24: xivo.peers[1]: "100.88.3.4" lies in network.range 100.88.0.0/16: ` + lies},
		{"peer in a range of the document", peers("{mode: overlay, range: 192.168.0.0/16}", "[192.168.1.1]"), `d:5:11: xivo.peers[0]: "192.168.1.1" lies in network.range 192.168.0.0/16: ` + lies},
		{"hub in the range", peers("{mode: overlay}", "[xivo1]\n  topology: hub\n  hub: 100.88.3.4"), `d:7:8: xivo.hub: "100.88.3.4" lies in network.range 100.88.0.0/16: ` + lies},
		{"a bad range says nothing of peers", peers("{mode: overlay, range: 100.88.0.0/31}", "[100.88.0.1]"), `d:4:35: xivo.network.range: "100.88.0.0/31" is a /31, take one from /8 to /30`},

		{"metadata closed", with("firewall: {metadata: closed}"), `d:5:24: xivo.firewall.metadata: "closed" is not known, write open, or leave it out`},
		{"metadata true", with("firewall: {metadata: true}"), "d:5:24: xivo.firewall.metadata: is true or false, write text (in quotes)"},
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
		})
	}
}

func TestPeersMayLieInTheRangeWhereThereIsNoOverlay(t *testing.T) {
	if _, err := Parse([]byte("xivo: {version: 1, peers: [100.88.0.1], network: {mode: direct, interface: wg0}, secret: \""+word+"\"}"), "d"); err != nil {
		t.Error(err)
	}
}
