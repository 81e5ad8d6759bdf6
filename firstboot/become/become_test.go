package become_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

func TestThePartsOfBothPhasesFitTogether(t *testing.T) {
	if err := become.Phase.Check(); err != nil {
		t.Error(err)
	}
	if err := become.SettlePhase.Check(); err != nil {
		t.Error(err)
	}
}

// Whatever a step does not concern, it does not ask: this server has no database
// and no broker.
func TestStepsThatDoNotConcernAServerAreSkipped(t *testing.T) {
	for name, c := range map[string]struct {
		version string
		change  func(t *testing.T, n *node.Node)
		want    []string
	}{
		"a copy": {"16.03", func(*testing.T, *node.Node) {}, []string{"ssh-host-keys"}},
		"a copy whose daemons have the UUID from the database": {"16.01", func(*testing.T, *node.Node) {},
			[]string{"ssh-host-keys", "uuid-files", "uuid-manager"}},
		"a server that was adopted": {"16.03", func(_ *testing.T, n *node.Node) { n.Journal.Identity.Adopted = true },
			[]string{"ssh-host-keys", "old-keys", "service-keys", "rabbitmq-clean"}},
		"one with SSH": {"16.03", func(t *testing.T, n *node.Node) { nodetest.Put(t, n, "/etc/ssh/sshd_config", "") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodetest.Server(t, c.version, nil)
			n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errors.New("this server has no broker") }
			c.change(t, n)
			var skipped []string
			for _, s := range slices.Concat(become.Phase.Steps, become.SettlePhase.Steps) {
				if s.When == nil {
					continue
				}
				if _, why, _ := s.Look(t.Context(), n); why != "" {
					skipped = append(skipped, s.Name)
				}
			}
			if !slices.Equal(skipped, c.want) {
				t.Errorf("skipped: %q, want %q", skipped, c.want)
			}
		})
	}
}

// ssh must work on a sealed image that boots without a data source.
func TestAMachineHasSSHHostKeys(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	nodetest.Put(t, n, "/etc/ssh/sshd_config", "")
	nodetest.Put(t, n, "/bin/ssh-keygen", "#!/bin/sh\n[ \"$1\" = -A ] && [ \"$2\" = -f ] && echo made >>\"$3/etc/ssh/ssh_host_rsa_key\"\n")
	if err := os.Chmod(n.Platform.Path("/bin/ssh-keygen"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", n.Platform.Path("/bin")+":"+os.Getenv("PATH"))
	p := nodetest.Only(t, become.Phase, "ssh-host-keys")
	for range 2 {
		if e := n.Runner().Step(t.Context(), p, 0); e.Err != nil {
			t.Fatal(e.Err)
		}
	}
	if got := nodetest.Read(t, n, "/etc/ssh/ssh_host_rsa_key"); got != "made\n" {
		t.Errorf("the keys were made %d times", strings.Count(got, "made"))
	}
}

// The broker of a copy starts as that of its original, so it must not federate
// before settle has taken out what it would do that with.
func TestTheBrokerOfACopyStartsWithoutFederation(t *testing.T) {
	for _, copied := range []bool{true, false} {
		n := nodetest.Server(t, "16.03", nil)
		n.Journal.Identity.Copied = copied
		nodetest.Put(t, n, platform.RabbitConfigDir+"/enabled_plugins", "[rabbitmq_federation].\n")
		e := n.Runner().Step(t.Context(), nodetest.Only(t, become.Phase, "rabbitmq-plugins"), 0)
		got := nodetest.Read(t, n, platform.RabbitConfigDir+"/enabled_plugins")
		if e.Err != nil || strings.Contains(got, "federation") == copied || !strings.Contains(got, "management") {
			t.Errorf("a copy: %t: %s, %v", copied, got, e.Err)
		}
	}
}

// Who a node will be is decided once, and nothing is written for it.
func TestANewIdentity(t *testing.T) {
	sealed := &manifest.Manifest{Format: 1, Operations: []manifest.Operation{{Name: node.SealedFederation}, {Name: node.SealedBrokerName}}}
	for name, c := range map[string]struct {
		change func(t *testing.T, n *node.Node)
		copied bool
	}{
		"of a sealed image": {func(t *testing.T, n *node.Node) { n.Seal.Manifest = sealed }, false},
		"of a sealed image that worked since": {func(t *testing.T, n *node.Node) {
			n.Seal.Manifest = sealed
			nodetest.Put(t, n, platform.ConsulDataDir+"/raft/raft.db", "state")
		}, true},
		"of an image whose broker was not sealed": {func(t *testing.T, n *node.Node) {
			n.Seal.Manifest = &manifest.Manifest{Format: 1, Operations: []manifest.Operation{{Name: node.SealedFederation}, {Name: node.SealedBrokerName, Disabled: true}}}
		}, true},
		"of a copy that was not sealed": {func(*testing.T, *node.Node) {}, true},
		"of a copy of a node that was sealed once": {func(t *testing.T, n *node.Node) {
			n.Seal.Manifest = sealed
			n.Journal = n.NewJournal(node.Identity{UUID: uuid.New()})
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodetest.Server(t, "16.03", nil)
			n.Journal = nil
			c.change(t, n)
			before := nodetest.Files(t, n.Platform.Root)
			id, err := become.Identity(t.Context(), n, false)
			if err != nil {
				t.Fatal(err)
			}
			host, _ := os.Hostname()
			want := node.Identity{UUID: id.UUID, Hostname: host, Name: identity.NodeName(host, id.UUID), Copied: c.copied}
			if id != want || id.UUID == uuid.Nil || id.UUID.String() == nodetest.OldUUID {
				t.Errorf("%+v, want %+v", id, want)
			}
			if again, err := become.Identity(t.Context(), n, false); err != nil || again.UUID == id.UUID {
				t.Errorf("two copies would be one: %v, %v", again, err)
			}
			if after := nodetest.Files(t, n.Platform.Root); len(after) != len(before) {
				t.Errorf("written: %v", after)
			}
		})
	}

	n := nodetest.Server(t, "16.03", nil)
	n.Document.Config.Network.Range = netip.MustParsePrefix("127.0.0.0/8")
	if id, err := become.Identity(context.Background(), n, false); err == nil || !strings.Contains(err.Error(), "is in use here") || id != (node.Identity{}) {
		t.Errorf("in a range that is used for something else: %v, %v", id, err)
	}
}
