package converge_test

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// found is what a process finds below the root of another node.
func found(t *testing.T, n *node.Node) *node.Node {
	t.Helper()
	again, err := node.Open(n.Platform.Root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	return again
}

// No pass is made with the first document of a node that became without one: a
// become comes first.
func TestTheFirstDocumentOfANodeWaitsForABecome(t *testing.T) {
	for name, instance := range map[string]string{
		"the same machine, where the seed was forgotten": "",
		"a copy of it": "iid-2",
	} {
		t.Run(name, func(t *testing.T) {
			was := nodetest.Bare(t)
			nodetest.Put(t, was, platform.VersionFile, "16.03")
			nodetest.Put(t, was, "/var/lib/cloud/data/instance-id", instance)
			nodetest.Put(t, was, node.DocumentFile, string(cloudinit.UserData(cloudinit.Alone())))
			was.Instance = node.Instance{ID: "iid-1"}
			was.Journal = was.NewJournal(node.Identity{UUID: uuid.New(), Name: "xivo-1", NoDocument: true})
			nodetest.Done(t, was, node.Become, node.Settle)
			if err := was.Journal.Save(); err != nil {
				t.Fatal(err)
			}
			nodetest.Put(t, was, cloudinit.ConfigFile, "xivo:\n  version: 1\n  peers: []\n  secret: seven small boats left harbour today\n")
			if says := converge.Waits(t.Context(), found(t, was)); !strings.Contains(says, "`xivo-firstboot run` does it") {
				t.Errorf("it says: %s", says)
			}
		})
	}
}

// Somebody whose document is not taken is told of it, and not only that there is
// none.
func TestAServerThatWasLeftAloneSaysWhy(t *testing.T) {
	for _, tc := range []struct{ name, document, says string }{
		{"none", "", "no xivo document: neither cloud-init's user data and vendor data nor /etc/xivo-firstboot/config.yml has one"},
		{"a mistake", "xivo:\n  version: 1\n  peer: []\n", `unknown key "peer"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := nodetest.Bare(t)
			nodetest.Put(t, n, platform.VersionFile, "16.03")
			if tc.document != "" {
				nodetest.Put(t, n, cloudinit.ConfigFile, tc.document)
			}
			if says := converge.Waits(t.Context(), found(t, n)); !strings.Contains(says, tc.says) || !strings.Contains(says, "left as it is") {
				t.Errorf("it says: %s", says)
			}
		})
	}
}
