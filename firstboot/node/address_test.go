package node_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// inNetwork names the environment variable that says which network a test that
// started itself again runs in.
const inNetwork = "XIVO_TEST_NETWORK"

// networks are what the tests find: made by a script, and seen by nobody else.
var networks = map[string]string{
	"routed":   "interface eth0 10.9.0.1/24; interface eth1 10.8.0.1/24; interface bare; ip route add default via 10.8.0.254",
	"unrouted": "interface eth0 10.9.0.1/24; interface eth1 10.8.0.1/24",
	"single":   "interface eth0 10.9.0.1/24",
	"none":     "",
}

const interfaces = `ip link set lo up
interface() {
	ip link add "$1" type veth peer name "far-$1"
	ip link set "far-$1" up
	ip link set "$1" up
	test -z "${2-}" || ip addr add "$2" dev "$1"
}
`

// hosts is /etc/hosts in all of them.
const hosts = `127.0.0.1 localhost
127.0.1.1 xivo-b.example.com xivo-b
10.9.0.1 xivo-b-outside
10.8.0.9 xivo-both
10.9.0.1 xivo-both
10.9.0.2 xivo-a.example.com xivo-a
10.8.0.2 xivo-c
`

// in runs a test in one of the networks: this program once more, in a network
// and with an /etc/hosts of its own.
func in(t *testing.T, network string, test func(t *testing.T)) {
	t.Helper()
	if now := os.Getenv(inNetwork); now != "" {
		if now == network {
			test(t)
		}
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	file := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(file, []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(t.Name(), "/")
	cmd := exec.Command("unshare", "--net", "--mount", "sh", "-ec", interfaces+networks[network]+"\n"+`mount --bind "$1" /etc/hosts; exec "$2" -test.v -test.run "^$3\$"`,
		"sh", file, os.Args[0], name)
	cmd.Env = append(os.Environ(), inNetwork+"="+network)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "--- PASS: "+t.Name()+"/") {
		t.Errorf("nothing was tested:\n%s", out)
	}
}

func TestOwnAddress(t *testing.T) {
	t.Parallel()
	for network, cases := range map[string][]struct {
		name      string
		advertise cloudinit.Advertise
		peers     []string
		want      string
		says      string
	}{
		"routed": {
			{name: "given", advertise: cloudinit.Advertise{Address: "10.9.0.1"}, want: "10.9.0.1"},
			{name: "given by interface", advertise: cloudinit.Advertise{Interface: "eth0"}, want: "10.9.0.1"},
			{name: "towards the first peer", peers: []string{"10.9.0.2", "10.8.0.2"}, want: "10.9.0.1"},
			{name: "towards the first peer that is not us", peers: []string{"10.8.0.1", "10.9.0.2"}, want: "10.9.0.1"},
			{name: "towards the first peer that is not us, by name", peers: []string{"xivo-b", "xivo-a"}, want: "10.9.0.1"},
			{name: "towards a peer, when the one before has no address", peers: []string{"nobody.invalid", "xivo-a"}, want: "10.9.0.1"},
			{name: "no name can be resolved, and several addresses", peers: []string{"nobody.invalid"}, says: "set `advertise` to one"},
			{name: "towards the default route, without a peer", want: "10.8.0.1"},
			{name: "towards the default route, with only ourselves", peers: []string{"10.9.0.1"}, want: "10.8.0.1"},
			{name: "on no interface", advertise: cloudinit.Advertise{Address: "10.9.0.7"}, says: "10.9.0.7 is not an address of this machine that others can reach; it has 10.8.0.1 (eth1), 10.9.0.1 (eth0)"},
			{name: "loopback", advertise: cloudinit.Advertise{Address: "127.0.0.1"}, says: "127.0.0.1 is not an address"},
			{name: "every address", advertise: cloudinit.Advertise{Address: "0.0.0.0"}, says: "0.0.0.0 is not an address"},
			{name: "an interface without an address", advertise: cloudinit.Advertise{Interface: "bare"}, says: "interface bare has no IPv4 address; this machine has 10.8.0.1 (eth1), 10.9.0.1 (eth0)"},
			{name: "an interface that is not there", advertise: cloudinit.Advertise{Interface: "eth9"}, says: "interface eth9 has no IPv4 address"},
			{name: "the loopback interface", advertise: cloudinit.Advertise{Interface: "lo"}, says: "interface lo has no IPv4 address"},
		},
		"unrouted": {
			{name: "a peer next to us", peers: []string{"xivo-a"}, want: "10.9.0.1"},
			{name: "two addresses and no route", says: "set `advertise` to one"},
		},
		"single": {
			{name: "the only one, without a route", want: "10.9.0.1"},
			{name: "the only one, and no name can be resolved", peers: []string{"nobody.invalid"}, want: "10.9.0.1"},
		},
		"none": {
			{name: "no address at all", says: "which has none"},
		},
	} {
		t.Run(network, func(t *testing.T) {
			in(t, network, func(t *testing.T) {
				for _, c := range cases {
					t.Run(c.name, func(t *testing.T) {
						ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
						defer cancel()
						got, err := node.Advertise(ctx, &cloudinit.Config{Advertise: c.advertise, Peers: c.peers})
						if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
							t.Errorf("%q, %v; want %q or an error with %q", got, err, c.want, c.says)
						}
					})
				}
			})
		})
	}
}

func TestPeersThatAreNotThisNode(t *testing.T) {
	t.Parallel()
	t.Run("routed", func(t *testing.T) {
		in(t, "routed", func(t *testing.T) {
			for _, c := range []struct {
				name  string
				peers []string
				want  []string
				says  string
			}{
				{name: "no peer"},
				{name: "only this node, by address", peers: []string{"10.9.0.1"}},
				{name: "only this node, by its other address", peers: []string{"10.8.0.1"}},
				{name: "only this node, by a name that is 127.0.1.1", peers: []string{"xivo-b"}},
				{name: "only this node, by its long name", peers: []string{"xivo-b.example.com"}},
				{name: "only this node, by a name of its address", peers: []string{"xivo-b-outside"}},
				{name: "only this node, by a name of others too", peers: []string{"xivo-both"}},
				{name: "one peer by name and by address", peers: []string{"xivo-a", "10.9.0.2", "xivo-a.example.com"}, want: []string{"10.9.0.2"}},
				{name: "one document for all nodes", peers: []string{"xivo-a", "xivo-b", "xivo-c"}, want: []string{"10.9.0.2", "10.8.0.2"}},
				{name: "a name that nobody knows hides no other", peers: []string{"nobody.invalid", "xivo-a"}, want: []string{"10.9.0.2"}, says: "peer nobody.invalid"},
			} {
				t.Run(c.name, func(t *testing.T) {
					got, err := node.OtherAddresses(t.Context(), c.peers)
					if !slices.Equal(got, c.want) || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
						t.Errorf("%q, %v; want %q and an error with %q", got, err, c.want, c.says)
					}
				})
			}
		})
	})
}

// What an operator wrote for another node is recognised by the machine that it
// leads to, and a name server that falls silent changes nothing in that.
func TestWhereTheHostsThatAPersonWroteLead(t *testing.T) {
	t.Parallel()
	t.Run("routed", func(t *testing.T) {
		in(t, "routed", func(t *testing.T) {
			known := node.Hosts{}
			for _, what := range []string{"they can be resolved", "they cannot any more"} {
				t.Run(what, func(t *testing.T) {
					got := known.ByAddress(t.Context(), []string{"xivo-a", "nobody.invalid", "10.9.0.2", "xivo-both"})
					want := map[string][]string{"10.9.0.2": {"xivo-a", "10.9.0.2"}, "10.9.0.1": {"xivo-both"}, "10.8.0.9": {"xivo-both"}}
					if diff := cmp.Diff(want, got); diff != "" {
						t.Errorf("(-want +got):\n%s", diff)
					}
				})
				if err := os.WriteFile("/etc/hosts", nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	})
}
