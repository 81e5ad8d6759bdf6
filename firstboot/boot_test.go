package firstboot_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// TestMain is also the other xivo-firstboot that the tests start.
func TestMain(m *testing.M) {
	if root := os.Getenv("LOCK_ROOT"); root != "" {
		fmt.Println(node.New(&platform.Platform{Root: root}, slog.Default()).Lock())
		bufio.NewReader(os.Stdin).ReadString('\n') // works until it is killed
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// atWork lets another xivo-firstboot work on the server until the test ends.
func atWork(t *testing.T, root string) {
	t.Helper()
	other := exec.Command(os.Args[0])
	other.Env = append(os.Environ(), "LOCK_ROOT="+root)
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); other.Wait() })
	if said, err := bufio.NewReader(stdout).ReadString('\n'); said != "<nil>\n" {
		t.Fatalf("the other has no lock: %q, %v", said, err)
	}
}

// files of a server, by path.
type files map[string]string

func with(of ...files) files {
	all := files{}
	for _, f := range of {
		maps.Copy(all, f)
	}
	return all
}

const (
	journalFile = platform.StateDir + "/journal.json"
	wizardUUID  = "5b4f0f1a-6c1b-4f0a-9a53-0d3d1a2b3c4d"
	theProduct  = "4c4c4544-0042-3510-8051-b8c04f4d3132"
	document    = "xivo:\n  version: 1\n  peers: []\n  secret: \"seven small boats left harbour today\"\n"
	mistaken    = "xivo:\n  version: 1\n  peer: [10.0.0.2]\n"
)

// journal is that of an instance; more are further keys of its identity.
func journal(id, product, more string, done ...string) files {
	var steps []string
	for _, d := range done {
		steps = append(steps, fmt.Sprintf(`%q: {"state": "done", "at": "2026-01-01T00:00:00Z"}`, d))
	}
	return files{journalFile: fmt.Sprintf(`{"format": 1, "instance": {"id": %q, "product": %q},
 "identity": {"uuid": %q, "hostname": "xivo", "name": "xivo-5b4f0f1a"%s}, "steps": {%s}}`,
		id, product, wizardUUID, more, strings.Join(steps, ", "))}
}

// The policy of who is held back at boot, by what is found. No server is asked.
func TestWhoIsHeldBackAtBoot(t *testing.T) {
	const (
		adopted = `, "adopted": true`
		become  = node.Become
		settle  = node.Settle
		look    = "^nothing is held back for it, but look: "
		worked  = "^this server worked before it was made a node, so nothing is held back, but look, then `xivo-firstboot run`: "
	)
	var (
		xivo      = files{platform.VersionFile: "16.03"}
		sealed    = files{node.ManifestFile: `{"format": 1}`}
		proved    = files{node.ManifestFile: `{"format": 1, "operations": [{"name": "uuid-database"}]}`}
		given     = files{cloudinit.ConfigFile: document}
		wrong     = files{cloudinit.ConfigFile: mistaken}
		kept      = files{node.DocumentFile: document}
		copied    = journal("", "", "")
		theirs    = journal("", "", adopted)
		became    = journal("", "", "", become)
		settled   = journal("", "", "", become, settle)
		otherID   = files{"/var/lib/cloud/data/instance-id": "iid-new\n", "/sys/class/dmi/id/product_uuid": theProduct + "\n"}
		otherBoth = files{"/var/lib/cloud/data/instance-id": "iid-new\n", "/sys/class/dmi/id/product_uuid": "11111111-2222-3333-4444-555555555555\n"}
		doubted   = with(xivo, otherID, journal("iid-old", theProduct, "", become, settle))
		consuls   = files{
			platform.ConsulConfigDir + "/config.json":     "{}",
			platform.ConsulDataDir + "/remote.snapshot":   "",
			platform.RabbitConfigDir + "/enabled_plugins": "[rabbitmq_federation,rabbitmq_management].\n",
		}
	)
	for _, c := range []struct {
		name    string
		found   files
		phase   string
		says    firstboot.Claim
		running string // a service
		busy    bool   // another xivo-firstboot is at work
		want    firstboot.Verdict
		why     string   // a part of it, as a regular expression; "" where there is nothing to say
		is      error    // that it is
		changes []string // files
	}{
		// A XiVO that nobody asked to change is started, whatever it is.
		{name: "no XiVO", phase: become, want: firstboot.Wait, why: look + ".*no XiVO here"},
		{name: "no XiVO", phase: settle, want: firstboot.Wait, why: look},
		{name: "an older XiVO than we know", found: files{platform.VersionFile: "14.24"}, phase: become, want: firstboot.Wait, why: look + ".*14.24"},
		{name: "never sealed, no document", found: xivo, phase: become, want: firstboot.GoOn},
		{name: "never sealed, no document", found: xivo, phase: settle, want: firstboot.GoOn},
		{name: "never sealed, a document that asks for nothing", found: with(xivo, given), phase: become, want: firstboot.GoOn},
		{name: "never sealed, a bad document", found: with(xivo, wrong), phase: become, want: firstboot.GoOn},
		{name: "never sealed, a bad document", found: with(xivo, wrong), phase: settle, want: firstboot.GoOn},
		{name: "the UUID was left in the image, so nobody asked", found: with(xivo, sealed), phase: become, want: firstboot.GoOn},

		// A sealed image, or a copy that began to become, must not work as the original.
		{name: "sealed, of no version that can be read", found: sealed, phase: become, want: firstboot.Hold, why: "no XiVO here"},
		{name: "sealed, of no version that can be read", found: sealed, phase: settle, want: firstboot.Hold, why: "no XiVO here"},
		{name: "a copy that began, of no version that can be read", found: copied, phase: become, want: firstboot.Hold, why: "no XiVO here"},
		{name: "a copy that began, and its document is gone", found: with(xivo, copied), phase: become, want: firstboot.Hold, why: "document that this node began with"},
		{name: "a copy that became, and its document is gone", found: with(xivo, became), phase: settle, want: firstboot.Hold, why: "^settle: the document that this node began with"},
		{name: "sealed, and a bad document", found: with(xivo, proved, wrong), phase: become, want: firstboot.Hold, why: `unknown key "peer"`, is: &cloudinit.InvalidError{}},
		{name: "sealed, by a manifest that cannot be read, and a bad document", found: with(xivo, files{node.ManifestFile: "{"}, wrong), phase: become, want: firstboot.Hold, is: &cloudinit.InvalidError{}, why: "peer"},
		{name: "a certain clone of a node, and a bad document", found: with(xivo, otherBoth, wrong, kept, journal("iid-old", theProduct, "", become, settle)), phase: become, want: firstboot.Hold, why: `unknown key "peer"`, is: &cloudinit.InvalidError{}},
		{name: "a certain clone of an adopted node, and a bad document", found: with(xivo, otherBoth, wrong, kept, journal("iid-old", theProduct, adopted, become, settle)), phase: become, want: firstboot.Hold, why: `unknown key "peer"`, is: &cloudinit.InvalidError{}},
		{name: "the copy's services cannot be asked", found: with(xivo, copied, kept), phase: become, running: "no init", want: firstboot.Hold, why: "service"},

		// What worked before works on.
		{name: "adopted, and its document is gone", found: with(xivo, theirs), phase: become, want: firstboot.Wait, why: worked + ".*document"},
		{name: "adopted, of no version that can be read", found: theirs, phase: become, want: firstboot.Wait, why: look},
		{name: "adopted, not settled, and its document is gone", found: with(xivo, journal("", "", adopted, become)), phase: settle, want: firstboot.Wait, why: worked + "settle: .*document"},
		{name: "the adopted one's services cannot be asked", found: with(xivo, theirs, kept), phase: become, running: "no init", want: firstboot.Wait, why: worked},
		{name: "a node whose version cannot be read", found: with(sealed, settled), phase: become, want: firstboot.Wait, why: look},
		{name: "a node whose version cannot be read", found: with(sealed, settled), phase: settle, want: firstboot.Wait, why: look},
		{name: "a node whose journal is damaged", found: with(xivo, sealed, files{journalFile: "{"}), phase: become, want: firstboot.Wait, why: look + ".*journal.json is damaged"},
		{name: "a node whose journal is damaged", found: with(xivo, sealed, files{journalFile: "{"}), phase: settle, want: firstboot.Wait, why: look},
		{name: "a node whose journal is gone", found: with(xivo, files{node.StatusFile: "{}"}), phase: become, want: firstboot.Wait, why: look + ".*journal.json is gone"},
		{name: "a node", found: with(xivo, settled, given, kept), phase: become, want: firstboot.GoOn},
		{name: "a node", found: with(xivo, settled, given, kept), phase: settle, want: firstboot.GoOn},
		{name: "a node with a bad document", found: with(xivo, settled, wrong, kept), phase: become, want: firstboot.GoOn},
		{name: "a node with none", found: with(xivo, settled), phase: become, want: firstboot.GoOn},
		{name: "a node with none", found: with(xivo, settled), phase: settle, want: firstboot.GoOn},
		{name: "a node whose document changes what is kept for life", found: with(xivo, settled, given, files{node.DocumentFile: strings.Replace(document, "only we", "nobody", 1)}), phase: become, want: firstboot.GoOn},
		{name: "a node on which another is at work", found: with(xivo, settled, given, kept), phase: become, busy: true, want: firstboot.GoOn},
		{name: "a node whose services cannot be asked", found: with(xivo, settled, given, kept), phase: become, running: "no init", want: firstboot.GoOn},
		{name: "a node whose broker runs", found: with(xivo, settled, given, kept), phase: become, running: "rabbitmq-server", want: firstboot.GoOn},

		// Where a broker runs, this is no boot: it is being restarted on a server that
		// works.
		{name: "Consul runs", found: with(xivo, copied, kept), phase: become, running: "consul", want: firstboot.Wait, why: "^become: consul runs.*nothing was changed: use `xivo-firstboot run`$"},
		{name: "Consul runs on one whose document is gone", found: with(xivo, copied), phase: become, running: "consul", want: firstboot.Wait, why: "consul runs"},
		{name: "the broker runs", found: with(xivo, copied, kept), phase: become, running: "rabbitmq-server", want: firstboot.Wait, why: "rabbitmq-server runs"},
		{name: "Consul runs on a sealed image", found: with(xivo, proved, given), phase: become, running: "consul", want: firstboot.Wait, why: "consul runs"},
		{name: "Consul runs on one to be adopted", found: with(xivo, files{cloudinit.ConfigFile: document + "  identity: keep\n"}), phase: become, running: "consul", want: firstboot.Wait, why: "consul runs"},
		{name: "the broker runs on a confirmed copy", found: doubted, phase: become, says: firstboot.IsCopy, running: "rabbitmq-server", want: firstboot.Wait, why: "`xivo-firstboot run --confirm`$"},

		// Who has the lock may do what this would.
		{name: "another is at work", found: with(xivo, copied, kept), phase: become, busy: true, want: firstboot.Wait, why: "another xivo-firstboot is at work", is: node.ErrBusy},
		{name: "another is at work on a sealed image", found: with(xivo, proved, given), phase: become, busy: true, want: firstboot.Wait, why: "another xivo-firstboot", is: node.ErrBusy},
		{name: "another is at work on an adopted one", found: with(xivo, theirs, kept), phase: become, busy: true, want: firstboot.Wait, why: "another xivo-firstboot", is: node.ErrBusy},
		{name: "another is at work", found: with(xivo, became, kept), phase: settle, busy: true, want: firstboot.Wait, why: "another xivo-firstboot", is: node.ErrBusy},
		{name: "another is at work on one in doubt", found: doubted, phase: become, says: firstboot.IsSame, busy: true, want: firstboot.Wait, why: "another xivo-firstboot", is: node.ErrBusy},

		// Become comes first.
		{name: "become has not ended", found: with(xivo, copied, kept), phase: settle, want: firstboot.Wait, why: "^settle: become comes first, so nothing was changed"},
		{name: "become of an adopted one has not ended", found: with(xivo, theirs, kept), phase: settle, want: firstboot.Wait, why: "become comes first"},
		{name: "sealed, and become was not begun", found: with(xivo, proved, given), phase: settle, want: firstboot.GoOn},
		{name: "in doubt, and not settled", found: with(xivo, otherID, kept, journal("iid-old", theProduct, "", become)), phase: settle, want: firstboot.Wait, why: "become comes first.*instance id changed"},

		// In doubt.
		{name: "in doubt", found: with(doubted, kept, consuls), phase: become, want: firstboot.Wait, why: "instance id changed from iid-old to iid-new.*`xivo-firstboot run --confirm`.*`xivo-firstboot become --same`",
			changes: []string{platform.RabbitConfigDir + "/enabled_plugins", platform.ConsulConfigDir + "/interconnection.json"}},
		{name: "in doubt, with a document that cannot be read", found: with(doubted, consuls), phase: become, want: firstboot.Wait, why: "instance id changed"},
		{name: "in doubt, and it cannot be kept out of the mesh", found: with(doubted, kept), phase: become, want: firstboot.Wait, why: "instance id changed"},
		{name: "in doubt, while Consul runs", found: with(doubted, kept, consuls), phase: become, running: "consul", want: firstboot.Wait, why: "instance id changed"},
		{name: "in doubt, and settled", found: with(doubted, kept), phase: settle, want: firstboot.GoOn},
		{name: "in doubt, and a person says that it is the same", found: with(doubted, kept, consuls), phase: become, says: firstboot.IsSame, want: firstboot.GoOn, changes: []string{journalFile}},
		{name: "no doubt in a node", found: with(xivo, settled, given, kept), phase: become, says: firstboot.IsSame, want: firstboot.Refuse, why: "^become --same: nothing is in doubt here: the same instance$"},
		{name: "no doubt in what was never one", found: xivo, phase: become, says: firstboot.IsSame, want: firstboot.Refuse, why: "nothing is in doubt"},
		{name: "no doubt in a sealed image", found: with(xivo, proved), phase: become, says: firstboot.IsSame, want: firstboot.Refuse, why: "nothing is in doubt"},
		{name: "no doubt in an adopted one that began", found: with(xivo, theirs, kept), phase: become, says: firstboot.IsSame, want: firstboot.Refuse, why: "nothing is in doubt"},
		{name: "a copy is said of a node in no doubt", found: with(xivo, settled, given, kept), phase: become, says: firstboot.IsCopy, want: firstboot.GoOn},
	} {
		t.Run(c.phase+": "+c.name, func(t *testing.T) {
			if c.running == "no init" {
				programs(t, nil)
			} else {
				programs(t, map[string]string{"service": "#!/bin/sh\n[ \"$1\" = '" + c.running + "' ] || exit 3\n"})
			}
			root := t.TempDir()
			for name, content := range with(c.found, files{node.LockFile: ""}) {
				file := filepath.Join(root, name)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			if c.busy {
				atWork(t, root)
			}
			before := nodetest.Files(t, root)
			o := boots(t, firstboot.Machine{Root: root, Log: slog.New(slog.DiscardHandler)}, c.phase, c.says)
			judge(t, o, c.want, c.why, c.is)

			var changed []string
			for name, now := range nodetest.Files(t, root) {
				if was, ok := before[name]; !ok || was != now {
					changed = append(changed, strings.TrimPrefix(name, root))
				}
				delete(before, name)
			}
			slices.Sort(changed)
			slices.Sort(c.changes)
			if !slices.Equal(changed, c.changes) || len(before) > 0 {
				t.Errorf("changed: %q, want %q; removed: %q", changed, c.changes, slices.Collect(maps.Keys(before)))
			}
		})
	}
}

// judge compares an outcome with what should be.
func judge(t *testing.T, o firstboot.Outcome, want firstboot.Verdict, why string, is error) {
	t.Helper()
	if o.Verdict != want {
		t.Errorf("verdict %s, want %s", verdicts[o.Verdict], verdicts[want])
	}
	if why == "" {
		if o.Why != nil {
			t.Errorf("why: %v, want nothing said", o.Why)
		}
	} else if o.Why == nil || !regexp.MustCompile("(?s)"+why).MatchString(o.Why.Error()) {
		t.Errorf("why: %v, want %s", o.Why, why)
	}
	var invalid *cloudinit.InvalidError
	if errors.As(is, &invalid) {
		if !errors.As(o.Why, &invalid) {
			t.Errorf("why: %v, want the mistakes of the document", o.Why)
		}
	} else if is != nil && !errors.Is(o.Why, is) {
		t.Errorf("why: %v, want %v", o.Why, is)
	}
}

var verdicts = map[firstboot.Verdict]string{firstboot.GoOn: "go on", firstboot.Wait: "wait", firstboot.Hold: "hold", firstboot.Refuse: "refuse"}

// booting is a server of 16.03 before its brokers start, with all that become
// works on but what the test takes away. It never became.
func booting(t *testing.T, db *pgx.Conn) *node.Node {
	t.Helper()
	n := nodetest.Server(t, "16.03", db)
	n.Journal, n.Document = nil, node.Document{Config: n.Config()}
	n.Platform.Init = &nodetest.Manager{Env: map[string]string{"XIVO_UUID": nodetest.OldUUID}, AllDown: true}
	whole(t, n)
	return n
}

// whole adds the files of Consul, RabbitMQ and Debian that become works on.
func whole(t *testing.T, n *node.Node) {
	t.Helper()
	const token = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	added := files{
		kvexport.File: "the export",
		platform.ConsulConfigDir + "/config.json":                 `{"acl_master_token": "` + token + `", "ports": {"https": 8501}}`,
		platform.ConsulDataDir + "/master_token":                  token + "\n",
		platform.ConsulDataDir + "/default_xivo_consul_token.yml": "token: " + token + "\n",
		platform.RabbitConfigDir + "/enabled_plugins":             "[].\n",
		"/etc/group": "www-data:x:33:\n",
	}
	for name, content := range added {
		nodetest.Put(t, n, name, content)
	}
}

// sealedImage makes it an image that was sealed.
func sealedImage(n *node.Node) {
	n.Seal.Manifest = &manifest.Manifest{Format: 1, XiVO: "16.03", KV: manifest.Sum([]byte("the export")),
		Operations: []manifest.Operation{{Name: node.SealedUUID}, {Name: node.SealedFederation}, {Name: node.SealedBrokerName}}}
}

// hasBegun gives it the journal of a become in which these are done.
func hasBegun(t *testing.T, n *node.Node, id node.Identity, done ...string) {
	t.Helper()
	id.UUID, id.Hostname, id.Name = uuid.MustParse(wizardUUID), "xivo", "xivo-5b4f0f1a"
	n.Journal = n.NewJournal(id)
	nodetest.Addressed(t, n, "10.0.0.1/29")
	nodetest.Done(t, n, done...)
}

// saved puts its journal on the disk, from where it is read again under the lock.
func saved(t *testing.T, n *node.Node) {
	t.Helper()
	if n.Journal == nil {
		return
	}
	if err := n.Journal.Save(); err != nil {
		t.Fatal(err)
	}
}

// all are the names of all steps of a phase in the journal.
func all(p engine.Phase[*node.Node]) (ids []string) {
	for _, s := range p.Steps {
		ids = append(ids, p.ID(s.Name))
	}
	return ids
}

// What comes of a machine that takes on an identity: whether it does, and who is
// held back where a step fails.
func TestWhoIsHeldBackWhereAStepFails(t *testing.T) {
	_, mistakes := cloudinit.Parse([]byte(mistaken), "the document")
	dsn := server.Postgres(t, "")
	const worked = "^this server worked before it was made a node, so nothing is held back"
	identity := func(what string) func(*testing.T, *node.Node) {
		return func(_ *testing.T, n *node.Node) { n.Config().Identity = what }
	}
	doubt := func(t *testing.T, n *node.Node) {
		hasBegun(t, n, node.Identity{}, node.Become, node.Settle)
		n.Journal.Instance, n.Instance = node.Instance{ID: "i-1", Product: theProduct}, node.Instance{ID: "i-2", Product: theProduct}
	}
	for _, c := range []struct {
		name  string
		found func(*testing.T, *node.Node)
		says  firstboot.Claim
		// want and why are of a boot whose database is down; all go on where it is up.
		want firstboot.Verdict
		why  string
		also func(*testing.T, *node.Node) // after one that goes on
	}{
		{name: "a sealed image with a document", found: func(_ *testing.T, n *node.Node) { sealedImage(n) }, want: firstboot.Hold, why: "no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); id.Adopted || id.Copied || id.NoDocument {
					t.Errorf("it is %+v", id)
				}
			}},
		{name: "a sealed image without one", found: func(_ *testing.T, n *node.Node) {
			sealedImage(n)
			n.Document = node.Document{Missing: cloudinit.ErrNoDocument}
		}, want: firstboot.Hold, why: "no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); !id.NoDocument || n.Config() == nil || len(n.Config().Peers) > 0 {
					t.Errorf("it is not alone: %+v", id)
				}
			}},
		{name: "identity: regenerate", found: identity(cloudinit.IdentityRegenerate), want: firstboot.Hold, why: "no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); !id.Copied || id.Adopted {
					t.Errorf("it is %+v", id)
				}
			}},
		{name: "a certain clone of an adopted node", found: func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{Adopted: true}, node.Become, node.Settle)
			n.Journal.Instance, n.Instance = node.Instance{ID: "i-1"}, node.Instance{ID: "i-2"}
		}, want: firstboot.Hold, why: "no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); id.Adopted || !id.Copied || id.UUID.String() == wizardUUID {
					t.Errorf("it is %+v", id)
				}
			}},
		{name: "a doubt that a person confirmed", found: doubt, says: firstboot.IsCopy, want: firstboot.Hold, why: "no database"},
		{name: "identity: keep", found: identity(cloudinit.IdentityKeep), want: firstboot.Wait, why: worked + ".*no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); !id.Adopted || id.Copied {
					t.Errorf("it is %+v", id)
				}
			}},
		{name: "the first document of a node that became without one", found: func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{NoDocument: true}, node.Become, node.Settle)
			n.Document.Pending, n.Document.Config = n.Document.Config, cloudinit.Alone()
		}, want: firstboot.Wait, why: worked + ".*no database",
			also: func(t *testing.T, n *node.Node) {
				if id := n.Identity(); !id.Adopted || id.NoDocument || n.Config().Secret != "four tired bakers sang before dawn" {
					t.Errorf("it is %+v", id)
				}
			}},
		{name: "a copy that was cut off", found: func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{Copied: true}, "become.ssh-host-keys")
		}, want: firstboot.Hold, why: "no database"},
		{name: "an adopted server that was cut off", found: func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{Adopted: true}, "become.ssh-host-keys")
		}, want: firstboot.Wait, why: worked + ".*no database"},
	} {
		t.Run(c.name, func(t *testing.T) {
			programs(t, map[string]string{"consul": "#!/bin/sh\n"})
			n := booting(t, nil)
			boots := func() firstboot.Outcome {
				c.found(t, n)
				saved(t, n)
				defer n.Close()
				return firstboot.BootBecome(t.Context(), n, c.says)
			}
			judge(t, boots(), c.want, c.why, nil)

			n = booting(t, nodetest.Connect(t, server.Database(t, dsn, schema.SQL("16.03"))))
			judge(t, boots(), firstboot.GoOn, "", nil)
			if n.Journal == nil || !n.Journal.Became() {
				t.Error("it goes on, and did not become")
			} else if c.also != nil {
				c.also(t, n)
			}
		})
	}

	t.Run("a sealed image whose export was damaged", func(t *testing.T) {
		programs(t, nil)
		n := booting(t, nodetest.Connect(t, server.Database(t, dsn, schema.SQL("16.03"))))
		sealedImage(n)
		nodetest.Put(t, n, kvexport.File, "half of it")
		judge(t, firstboot.BootBecome(t.Context(), n, firstboot.NoClaim), firstboot.Hold, "is not the export that the seal made", nil)
	})
	t.Run("a first document with mistakes, for a copy", func(t *testing.T) {
		programs(t, nil)
		n := booting(t, nil)
		n.Config().Identity, n.Document.Err = cloudinit.IdentityRegenerate, mistakes
		judge(t, firstboot.BootBecome(t.Context(), n, firstboot.NoClaim), firstboot.Hold, "peer", mistakes)
	})
	t.Run("the firewall cannot be set", func(t *testing.T) {
		programs(t, nil)
		n := booting(t, nodetest.Connect(t, server.Database(t, dsn, schema.SQL("16.03"))))
		sealedImage(n)
		n.Config().Firewall.Enabled = true
		judge(t, firstboot.BootBecome(t.Context(), n, firstboot.NoClaim), firstboot.GoOn, "", nil)
	})
}

func TestWhoIsHeldBackBySettle(t *testing.T) {
	const worked = "^this server worked before it was made a node, so nothing is held back"
	silent := func(n *node.Node, consulErr, brokerErr error) {
		silent(n, consulErr)
		n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, brokerErr }
	}
	for _, c := range []struct {
		name  string
		found func(*testing.T, *node.Node)
		want  firstboot.Verdict // an adopted server waits wherever another one is held
		why   string
	}{
		{"Consul has no leader", func(_ *testing.T, n *node.Node) { silent(n, errors.New("no leader"), nil) }, firstboot.Hold, "kv-import: no leader"},
		{"the broker does not answer", func(t *testing.T, n *node.Node) {
			silent(n, nil, errors.New("no answer"))
			nodetest.Done(t, n, "settle.kv-import")
		}, firstboot.Hold, "rabbitmq-[a-z]+: no answer"},
		{"all is done, and the mesh cannot be asked", func(t *testing.T, n *node.Node) {
			silent(n, errors.New("no leader"), errors.New("no answer"))
			nodetest.Done(t, n, all(become.SettlePhase)...)
			n.Config().Firewall.Enabled = true
		}, firstboot.GoOn, ""},
		{"the document cannot be read", func(_ *testing.T, n *node.Node) {
			n.Document = node.Document{Err: io.ErrUnexpectedEOF}
		}, firstboot.Hold, "settle: the document that this node began with cannot be read: unexpected EOF"},
	} {
		for _, adopted := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, adopted: %t", c.name, adopted), func(t *testing.T) {
				programs(t, nil)
				n := booting(t, nil)
				hasBegun(t, n, node.Identity{Adopted: adopted}, node.Become)
				c.found(t, n)
				saved(t, n)
				defer n.Close()
				want, why := c.want, c.why
				if adopted && want == firstboot.Hold {
					want, why = firstboot.Wait, worked+".*"+c.why
				}
				judge(t, firstboot.BootSettle(t.Context(), n), want, why, nil)
				if n.Settled() != (want == firstboot.GoOn) {
					t.Errorf("settled: %t", n.Settled())
				}
			})
		}
	}
}

// boots runs the unit of a phase.
func boots(t *testing.T, m firstboot.Machine, phase string, claim firstboot.Claim) firstboot.Outcome {
	t.Helper()
	if phase == node.Settle {
		return m.BootSettle(t.Context())
	}
	return m.BootBecome(t.Context(), claim)
}

// A copy that has not become itself has its original's key: the network would take it
// for the original, which moved.
func TestWhoHasNoPartInTheMeshsNetwork(t *testing.T) {
	settled := journal("iid-old", theProduct, "", node.Become, node.Settle)
	machine := func(id, product string) files {
		return files{platform.VersionFile: "16.03", node.DocumentFile: document, "/var/lib/cloud/data/instance-id": id + "\n", "/sys/class/dmi/id/product_uuid": product + "\n"}
	}
	const other = "11111111-2222-3333-4444-555555555555"
	for name, found := range map[string]files{
		"a server that never became":          machine("iid-old", theProduct),
		"one that began to":                   with(machine("iid-old", theProduct), journal("iid-old", theProduct, "")),
		"one that may be a copy":              with(machine("iid-new", theProduct), settled),
		"a copy, before it has become itself": with(machine("iid-new", other), settled),
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, content := range found {
				file = filepath.Join(root, file)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			m := firstboot.Machine{Root: root, Log: slog.New(slog.DiscardHandler)}
			if err := m.Overlay(t.Context()); !errors.Is(err, firstboot.ErrNoOverlay) {
				t.Errorf("it says %v", err)
			}
		})
	}
}
