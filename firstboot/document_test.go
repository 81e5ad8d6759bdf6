package firstboot

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// What a node keeps for life is not changed by halves when its document changes;
// the rest of a document is taken.
func TestADocumentOfANodeThatLives(t *testing.T) {
	const began = "secret: a sentence that only we know"
	for _, tc := range []struct {
		name, document string
		instance       string // what cloud-init says now
		cutOff         bool
		refused        string
	}{
		{"the same", began, "iid-1", false, ""},
		{"another topology", began + "\n  topology: ring", "iid-1", false, ""},
		{"its own address spelled out", began + "\n  advertise: 10.0.0.1", "iid-1", false, ""},
		{"another secret", "secret: a sentence that nobody knows", "iid-1", false, "`secret`"},
		{"another address", began + "\n  advertise: 10.0.0.2", "iid-1", false, "`advertise`"},
		{"an interface", began + "\n  advertise: {interface: eth1}", "iid-1", false, "`advertise`"},
		{"no encryption any more", began + "\n  consul: {encrypt: false}", "iid-1", false, "`consul.encrypt`"},
		{"two of them", "secret: a sentence that nobody knows\n  consul: {encrypt: false}", "iid-1", false, "`secret` and `consul.encrypt`"},
		{"another secret, after a become that was cut off", "secret: a sentence that nobody knows", "iid-1", true, "`secret`"},
		{"another secret, for a clone that is to become another", "secret: a sentence that nobody knows", "iid-2", false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &platform.Platform{Root: t.TempDir()}
			write := func(name, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(p.Path(name)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p.Path(name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(platform.VersionFile, "16.03")
			write("/var/lib/cloud/data/instance-id", tc.instance)
			write(documentFile, "xivo:\n  version: 1\n  peers: []\n  "+began+"\n")
			write(cloudinit.ConfigFile, "xivo:\n  version: 1\n  peers: []\n  "+tc.document+"\n")
			j := newJournal(p.Path(journalFile), Instance{ID: "iid-1"}, Identity{UUID: uuid.New(), Hostname: "xivo", Name: "xivo-1", Advertise: "10.0.0.1"})
			j.Steps[BecomePhase.Name] = Stamp{done, time.Now().UTC()}
			if tc.cutOff {
				delete(j.Steps, BecomePhase.Name)
			}
			if err := j.save(); err != nil {
				t.Fatal(err)
			}

			n, err := Open(p.Root, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			given, err := cloudinit.Load(p.Root)
			if err != nil {
				t.Fatal(err)
			}
			if tc.refused == "" {
				if n.DocumentErr != nil || string(cloudinit.UserData(n.Config)) != string(cloudinit.UserData(given)) {
					t.Errorf("it is not taken: %v", n.DocumentErr)
				}
				return
			}
			if said := fmt.Sprint(n.DocumentErr); !strings.Contains(said, "it changes "+tc.refused+", which a node keeps for life (its address is 10.0.0.1)") {
				t.Errorf("it says: %s", said)
			}
			if n.Config.Secret != "a sentence that only we know" {
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
		want           Action
	}{
		{"the same machine, where the seed was forgotten", "", Adopt},
		{"a copy of it", "iid-2", Become},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &platform.Platform{Root: t.TempDir()}
			write := func(name, text string) { put(t, &Node{Platform: p}, name, text) }
			write(platform.VersionFile, "16.03")
			write("/var/lib/cloud/data/instance-id", tc.instance)
			made := cloudinit.Alone()
			write(documentFile, string(cloudinit.UserData(made)))
			j := newJournal(p.Path(journalFile), Instance{ID: "iid-1"}, Identity{UUID: uuid.New(), Name: "xivo-1", Advertise: "10.0.0.1", NoDocument: true})
			j.Steps[BecomePhase.Name], j.Steps[SettlePhase.Name] = Stamp{State: done}, Stamp{State: done}
			if err := j.save(); err != nil {
				t.Fatal(err)
			}
			open := func() *Node {
				t.Helper()
				n, err := Open(p.Root, slog.New(slog.DiscardHandler))
				if err != nil || n.DocumentErr != nil {
					t.Fatal(err, n.DocumentErr)
				}
				return n
			}
			if action, why := open().Decide(false); tc.want == Adopt && action != Unchanged {
				t.Errorf("without a document, it is to %s: %s", action, why)
			}

			write(cloudinit.ConfigFile, "xivo:\n  version: 1\n  peers: []\n  secret: a sentence that only we know\n")
			n := open()
			if action, why := n.Decide(false); action != tc.want {
				t.Errorf("%s: %s", action, why)
			}
			if tc.want == Adopt && n.Config.Secret != made.Secret {
				t.Error("a pass would take the document before the node became with it")
			}
			if says := n.Waits(t.Context()); !strings.Contains(says, "`xivo-firstboot run` does it") {
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
			root := t.TempDir()
			write := func(name, text string) {
				t.Helper()
				if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(platform.VersionFile, "16.03")
			if tc.document != "" {
				write(cloudinit.ConfigFile, tc.document)
			}
			n, err := Open(root, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			if says := n.Waits(t.Context()); !strings.Contains(says, tc.says) || !strings.Contains(says, "left as it is") {
				t.Errorf("it says: %s", says)
			}
		})
	}
}
