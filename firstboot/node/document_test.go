package node_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

const instanceID = "/var/lib/cloud/data/instance-id"

// What a node keeps for life is not changed by halves when its document changes;
// the rest of a document is taken.
func TestADocumentOfANodeThatLives(t *testing.T) {
	const began = "secret: seven small boats left harbour today"
	for _, tc := range []struct {
		name, document string
		instance       string // what cloud-init says now
		cutOff         bool
		refused        string
	}{
		{"the same", began, "iid-1", false, ""},
		{"another topology", began + "\n  topology: ring", "iid-1", false, ""},
		{"another place to reach it first", began + "\n  advertise: 10.0.0.2", "iid-1", false, ""},
		{"another secret", "secret: nine grey herons watched the tide", "iid-1", false, "`secret`"},
		{"another range", began + "\n  network: {range: 10.200.0.0/16}", "iid-1", false, "`network`"},
		{"another network", began + "\n  network: {mode: direct, interface: wg0}", "iid-1", false, "`network`"},
		{"no encryption any more", began + "\n  consul: {encrypt: false}", "iid-1", false, "`consul.encrypt`"},
		{"two of them", "secret: nine grey herons watched the tide\n  consul: {encrypt: false}", "iid-1", false, "`secret` and `consul.encrypt`"},
		{"another secret, after a become that was cut off", "secret: nine grey herons watched the tide", "iid-1", true, "`secret`"},
		{"another secret, for a clone that is to become another", "secret: nine grey herons watched the tide", "iid-2", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			was := machine(t)
			nodetest.Put(t, was, instanceID, tc.instance)
			nodetest.Put(t, was, node.DocumentFile, "xivo:\n  version: 1\n  peers: []\n  "+began+"\n")
			nodetest.Put(t, was, cloudinit.ConfigFile, "xivo:\n  version: 1\n  peers: []\n  "+tc.document+"\n")
			was.Instance = node.Instance{ID: "iid-1"}
			j := was.NewJournal(node.Identity{UUID: uuid.New(), Hostname: "xivo", Name: "xivo-1"})
			if !tc.cutOff {
				j.Steps[node.Become] = engine.Stamp{State: engine.Done, At: time.Now().UTC()}
			}
			if err := j.Save(); err != nil {
				t.Fatal(err)
			}
			was.Journal = j
			nodetest.Addressed(t, was, "100.88.0.1/16")

			n := reopen(t, was)
			given, err := cloudinit.Load(n.Platform.Root)
			if err != nil {
				t.Fatal(err)
			}
			if tc.refused == "" {
				if n.Document.Err != nil || string(cloudinit.UserData(n.Config())) != string(cloudinit.UserData(given)) {
					t.Errorf("it is not taken: %v", n.Document.Err)
				}
				return
			}
			if said := fmt.Sprint(n.Document.Err); !strings.Contains(said, "it changes "+tc.refused+", which a node keeps for life (its address is 100.88.0.1)") {
				t.Errorf("it says: %s", said)
			}
			if n.Config().Secret != "seven small boats left harbour today" {
				t.Error("the one of before is not in force")
			}
		})
	}
}

// A node that became without a document is not alone for life: its first one is
// carried out by the next become, and by no pass before that.
func TestTheFirstDocumentOfANodeThatBecameWithoutOne(t *testing.T) {
	for _, tc := range []struct {
		name, instance string
		want           node.Action
	}{
		{"the same machine, where the seed was forgotten", "", node.Adopt},
		{"a copy of it", "iid-2", node.TakeOn},
	} {
		t.Run(tc.name, func(t *testing.T) {
			was := machine(t)
			nodetest.Put(t, was, instanceID, tc.instance)
			made := cloudinit.Alone()
			nodetest.Put(t, was, node.DocumentFile, string(cloudinit.UserData(made)))
			was.Instance = node.Instance{ID: "iid-1"}
			was.Journal = was.NewJournal(node.Identity{UUID: uuid.New(), Name: "xivo-1", NoDocument: true})
			nodetest.Done(t, was, node.Become, node.Settle)
			if err := was.Journal.Save(); err != nil {
				t.Fatal(err)
			}
			open := func() *node.Node {
				t.Helper()
				n := reopen(t, was)
				if n.Document.Err != nil {
					t.Fatal(n.Document.Err)
				}
				return n
			}
			if action, why := open().Decide(false); tc.want == node.Adopt && action != node.Unchanged {
				t.Errorf("without a document, it is to %s: %s", action, why)
			}

			nodetest.Put(t, was, cloudinit.ConfigFile, "xivo:\n  version: 1\n  peers: []\n  secret: seven small boats left harbour today\n")
			n := open()
			if action, why := n.Decide(false); action != tc.want {
				t.Errorf("%s: %s", action, why)
			}
			if tc.want == node.Adopt && n.Config().Secret != made.Secret {
				t.Error("a pass would take the document before the node became with it")
			}
		})
	}
}
