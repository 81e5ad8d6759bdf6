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
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

// inNetwork names the environment variable that says which network a test that
// started itself again runs in.
const inNetwork = "XIVO_TEST_NETWORK"

// networks are what the tests find: made by a script, and seen by nobody else.
var networks = map[string]string{
	"routed": "interface eth0 10.9.0.1/24; interface eth1 10.8.0.1/24; interface eth2 10.7.0.2/24; ip addr add 10.7.0.1/24 dev eth2; interface bare; ip route add default via 10.8.0.254",
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

// The address in a network that an operator brought is what the interface has, and an
// interface behind which anybody may be is refused.
func TestTheAddressInANetworkThatAnOperatorBrought(t *testing.T) {
	t.Parallel()
	t.Run("routed", func(t *testing.T) {
		in(t, "routed", func(t *testing.T) {
			for _, c := range []struct {
				name, dev, advertise string
				shared               bool
				want                 string
				says                 string
			}{
				{name: "the interface's", dev: "eth0", want: "10.9.0.1"},
				{name: "the lowest of several", dev: "eth2", want: "10.7.0.1"},
				{name: "the one that is named", dev: "eth2", advertise: "10.7.0.2", want: "10.7.0.2"},
				{name: "one of another interface is named", dev: "eth2", advertise: "10.9.0.1", says: "10.9.0.1, which `advertise` names, is no address of eth2"},
				{name: "an interface without an address", dev: "bare", says: "the interface bare has no IPv4 address; this machine has 10.7.0.1 (eth2), 10.7.0.2 (eth2), 10.8.0.1 (eth1), 10.9.0.1 (eth0)"},
				{name: "an interface that is not there", dev: "eth9", says: "the interface eth9 has no IPv4 address"},
				{name: "an interface with the default route", dev: "eth1", want: "10.8.0.1", says: "eth1 has the default route"},
				{name: "the same, and that is accepted", dev: "eth1", shared: true, want: "10.8.0.1"},
			} {
				t.Run(c.name, func(t *testing.T) {
					n := nodetest.Bare(t)
					n.Document.Config = cloudinit.Alone()
					n.Document.Config.Network = cloudinit.Network{Mode: cloudinit.NetworkDirect, Interface: c.dev, Shared: c.shared, Port: 9484}
					n.Document.Config.Advertise.Address = c.advertise
					n.Journal = n.NewJournal(node.Identity{UUID: uuid.New()})
					if got := n.Address(); got != c.want {
						t.Errorf("it is at %q, want %q", got, c.want)
					}
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					defer cancel()
					if err := n.CheckNetwork(ctx); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
						t.Errorf("the check says %v, want %q", err, c.says)
					}
				})
			}
		})
	})
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
