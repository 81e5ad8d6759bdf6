package converge_test

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
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

// What keeps no address cannot be reached by others, whatever a pass would do.
func TestANodeWithoutAnAddressSaysWhatToDo(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	nodetest.Done(t, n, node.Become, node.Settle)
	if err := n.WriteState(node.StatusFile, converge.Status{State: converge.Joined}); err != nil {
		t.Fatal(err)
	}
	if says := converge.Waits(t.Context(), n); says != "" {
		t.Fatalf("with one: %s", says)
	}
	for name, c := range map[string]struct{ content, says string }{
		"none, as what became before meshes had a network": {"", "boot another in its place"},
		"that of another node":                             {`{"range": "10.0.0.0/29", "address": "10.0.0.3", "uuid": "` + nodetest.PeerUUID + `"}`, "restore /var/lib/xivo-firstboot/mesh from a backup"},
		"half of one":                                      {`{"range": "10.0`, "read " + n.Platform.Path(node.MeshDir, "address.json")},
	} {
		t.Run(name, func(t *testing.T) {
			file := node.MeshDir + "/address.json"
			if err := os.Remove(n.Platform.Path(file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			if c.content != "" {
				nodetest.Put(t, n, file, c.content)
			}
			if says := converge.Waits(t.Context(), n); !strings.Contains(says, c.says) {
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
