package firstboot_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const (
	raftFile = platform.ConsulDataDir + "/raft/raft.db"
	// Stamps of the journal.
	consulGone  = "become.consul-gone"
	consulReset = "become.consul-state"
)

// cutOff is a node whose become was cut off, with an export of the KV. None of its
// servers runs.
func cutOff(t *testing.T) *node.Node {
	t.Helper()
	n := nodetest.Bare(t)
	n.Document.Config = cloudinit.Alone()
	n.Journal = n.NewJournal(node.Identity{UUID: uuid.New()})
	// What is not looked at here was done.
	for _, s := range become.Phase.Steps {
		nodetest.Done(t, n, become.Phase.ID(s.Name))
	}
	delete(n.Journal.Steps, consulReset)
	nodetest.Put(t, n, kvexport.File, "the export")
	nodetest.Put(t, n, platform.CertificateFile, "a certificate")
	return n
}

// running lets all services run; Consul answers with an error.
func running(n *node.Node, err error) {
	n.Platform.Init = &nodetest.Manager{}
	silent(n, err)
}

func silent(n *node.Node, err error) {
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return nil, err }
}

// resumes begins again, as a later run or boot does: another process, which knows
// what is on the disk.
func resumes(t *testing.T, n *node.Node) *node.Node {
	t.Helper()
	later := node.New(n.Platform, n.Log)
	later.Progress, later.Instance, later.Document, later.Journal, later.Seal = n.Progress, n.Instance, n.Document, n.Journal, n.Seal
	later.Servers.OpenConsul = n.Servers.OpenConsul
	if action, why, err := firstboot.Begin(t.Context(), later, false); err != nil || action != node.Resume {
		t.Fatalf("%s (%s), %v", action, why, err)
	}
	return later
}

// exportsAs is become's export and what needs it, and what Consul holds.
func exportsAs(t *testing.T, content string) engine.Phase[*node.Node] {
	t.Helper()
	p := nodetest.Only(t, become.Phase, kvexport.ExportStep, kvexport.EmptyStep)
	p.Steps[0].Open = node.Plain(func(n *node.Node) engine.Resource {
		return n.KV.UpToDate(func(context.Context) error {
			return n.KV.Put(func(file string) error { return os.WriteFile(file, []byte(content), 0o600) })
		})
	})
	return p
}

// The one way to lose the KV: to export again what Consul holds after a run
// that was cut off had emptied it. XiVO works with that Consul until the next run,
// though, so what it stored is added.
func TestAResumedRunCompletesTheOriginalExport(t *testing.T) {
	const (
		original = `{"key": "a contact", "value": "b25l", "flags": 0}`
		again    = `{"key": "a contact", "value": "dHdv", "flags": 0}`
		since    = `{"key": "a later one", "value": "dHdv", "flags": 7}`
	)
	export := func(entries ...string) string {
		return `{"format": 1, "entries": [` + strings.Join(entries, ", ") + "]}"
	}
	for what, c := range map[string]struct {
		gone, reset engine.State
		want        string
	}{
		"while the state was removed": {engine.Running, engine.Running, export(original)},
		"right after that":            {engine.Done, engine.Running, export(original, since)},
		"later":                       {engine.Done, engine.Done, export(original, since)},
	} {
		t.Run(what, func(t *testing.T) {
			n := cutOff(t)
			nodetest.Put(t, n, kvexport.File, export(original))
			if err := errors.Join(n.Journal.Stamp(consulGone, c.gone), n.Journal.Stamp(consulReset, c.reset)); err != nil {
				t.Fatal(err)
			}
			nodetest.Put(t, n, raftFile, "of a Consul that began anew")

			n = resumes(t, n)
			if _, err := n.Runner().Run(t.Context(), exportsAs(t, export(again, since))); err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal([]byte(nodetest.Read(t, n, kvexport.File)), &got), json.Unmarshal([]byte(c.want), &want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the export (-want +got):\n%s", diff)
			}
			nothingLeft(t, n, n.Platform.Path(platform.ConsulDataDir, "raft"))
			nothingLeft(t, n, n.Platform.Path(kvexport.File)+".*")
		})
	}
}

func nothingLeft(t *testing.T, n *node.Node, pattern string) {
	t.Helper()
	if left, err := filepath.Glob(pattern); err != nil || len(left) > 0 {
		t.Errorf("left is %q, %v", left, err)
	}
}

// Once Consul's state is to stay, nothing is exported: there would be a copy of
// the KV that no step removes.
func TestNothingIsExportedOnceTheBecomeHasEnded(t *testing.T) {
	n := cutOff(t)
	running(n, errors.New("it was asked"))
	if err := errors.Join(os.Remove(n.Platform.Path(kvexport.File)), n.Journal.Stamp(node.Become, engine.Done)); err != nil {
		t.Fatal(err)
	}
	if err := firstboot.ExportLive(t.Context(), n); err != nil {
		t.Error(err)
	}
}

// Where an export is all that there is of the KV, nothing but its restore
// removes it.
func TestARunThatCannotExportKeepsTheExportThatIsThere(t *testing.T) {
	unreachable := errors.New("no Consul answers")
	for _, c := range []struct {
		name         string
		sealed, raft bool
		up           bool
		want         string // of the run
	}{
		{"a sealed clone that is held", true, false, false, ""},
		{"a sealed clone whose Consul somebody started", true, true, true, ""},
		{"a server whose Consul does not run", false, true, false, ""},
		{"a server whose Consul does not answer", false, true, true, unreachable.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := cutOff(t)
			silent(n, unreachable)
			if c.up {
				running(n, unreachable)
			}
			if c.sealed {
				n.Seal.Manifest = &manifest.Manifest{KV: manifest.Sum([]byte("the export"))}
			}
			if c.raft {
				nodetest.Put(t, n, raftFile, "state")
			}
			n = resumes(t, n)
			if err := firstboot.ExportLive(t.Context(), n); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if got := nodetest.Read(t, n, kvexport.File); got != "the export" {
				t.Errorf("the export is %q", got)
			}
			// And the boot after it goes on from that.
			step, _ := become.Phase.Step(kvexport.ExportStep)
			if diff, err := step.Diff(t.Context(), n); err != nil || (diff == nil) != c.sealed {
				t.Errorf("the next boot: %q, %v", diff, err)
			}
		})
	}
}

// What XiVO stores between a run that failed and the next one is not lost.
func TestWhatWasStoredSinceARunFailedIsExported(t *testing.T) {
	for _, live := range []bool{true, false} {
		t.Run(map[bool]string{true: "run", false: "boot"}[live], func(t *testing.T) {
			n := cutOff(t)
			nodetest.Put(t, n, raftFile, "the KV, and more")
			// Consul's files were in use, so consul-state refused.
			open, err := os.Open(n.Platform.Path(raftFile))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Runner().Run(t.Context(), become.Phase); err == nil || !strings.Contains(err.Error(), "stop it first") {
				t.Fatalf("%v, want it to refuse what a process has open", err)
			}
			open.Close()

			n = resumes(t, n)
			p := exportsAs(t, "all of it")
			if live {
				// Exported while Consul ran; become finds that.
				if e := n.Runner().Step(t.Context(), p, 0); e.Err != nil {
					t.Fatal(e.Err)
				}
				p = nodetest.Only(t, become.Phase, kvexport.ExportStep, kvexport.EmptyStep)
			}
			if _, err := n.Runner().Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if got := nodetest.Read(t, n, kvexport.File); got != "all of it" {
				t.Errorf("the export is %q", got)
			}
			if _, err := os.Stat(n.Platform.Path(raftFile)); err == nil {
				t.Error("Consul's state is still there")
			}
			nothingLeft(t, n, n.Platform.Path(kvexport.File)+".*")
		})
	}
}

// Between old-keys and certificate no Consul can read the state, nor write to it.
func TestACopyThatIsCutOffWithoutACertificateGoesOn(t *testing.T) {
	n := cutOff(t)
	nodetest.Put(t, n, raftFile, "the KV")
	if err := os.Remove(n.Platform.Path(platform.CertificateFile)); err != nil {
		t.Fatal(err)
	}
	n = resumes(t, n)
	if _, err := n.Runner().Run(t.Context(), become.Phase); err != nil {
		t.Error(err)
	}
	if got := nodetest.Read(t, n, kvexport.File); got != "the export" {
		t.Errorf("the export is %q", got)
	}
}

// A copy of a node that was cut off has the KV in the export only, as that had.
func TestACopyOfANodeThatWasCutOffKeepsTheExport(t *testing.T) {
	n := nodetest.Server(t, "16.03", nodetest.Connect(t, server.Postgres(t, schema.SQL("16.03"))))
	for _, retired := range []bool{true, false} {
		was := n.NewJournal(n.Identity())
		was.Instance = node.Instance{ID: "original"}
		was.Steps[consulGone] = engine.Stamp{State: engine.Done}
		if retired {
			was.Steps["settle.kv-retire"] = engine.Stamp{State: engine.Done}
		}
		n.Journal, n.Instance = was, node.Instance{ID: "copy"}
		if action, why, err := firstboot.Prepare(t.Context(), n, false); err != nil || action != node.TakeOn {
			t.Fatalf("%s (%s), %v", action, why, err)
		}
		nodetest.Put(t, n, kvexport.File, `{"format": 1, "entries": [{"key": "a contact", "value": "b25l", "flags": 0}]}`)
		err := n.KV.Put(func(file string) error { return os.WriteFile(file, []byte(`{"format": 1, "entries": []}`), 0o600) })
		if err != nil {
			t.Fatal(err)
		}
		if kept := strings.Contains(nodetest.Read(t, n, kvexport.File), "a contact"); kept == retired {
			t.Errorf("its restore was verified: %t; the export of the original is kept: %t", retired, kept)
		}
	}
}

// What is wrong with the configuration is found while all is as it was.
func TestConsulKeepsItsStateWhereItsConfigurationIsRefused(t *testing.T) {
	const token = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	for name, c := range map[string]struct{ site, consul, says string }{
		"by a file that comes after ours":  {`{"node_name": "site"}`, "#!/bin/sh\n", "zz-site.json"},
		"by Consul":                        {`{}`, "#!/bin/sh\necho no such key; exit 1\n", "no such key"},
		"by XiVO's package, with no token": {`{}`, "#!/bin/sh\n", "dpkg-reconfigure consul"},
	} {
		t.Run(name, func(t *testing.T) {
			n := cutOff(t)
			n.Journal.Identity.Name = "xivo-b-99999999"
			n.Config().Secret = "four tired bakers sang before dawn"
			nodetest.Put(t, n, raftFile, "the KV")
			nodetest.Put(t, n, platform.ConsulConfigDir+"/config.json", `{"acl_master_token": "`+token+`"}`)
			nodetest.Put(t, n, platform.ConsulConfigDir+"/zz-site.json", c.site)
			nodetest.Put(t, n, platform.ConsulDataDir+"/default_xivo_consul_token.yml", "token: "+token+"\n")
			if c.says != "dpkg-reconfigure consul" {
				nodetest.Put(t, n, platform.ConsulDataDir+"/master_token", token+"\n")
			}
			programs(t, map[string]string{"consul": c.consul})
			for _, step := range []string{"consul-config", "consul-token"} {
				delete(n.Journal.Steps, "become."+step)
			}
			_, _, err := firstboot.Begin(t.Context(), n, false)
			if err == nil {
				_, err = n.Runner().Run(t.Context(), become.Phase)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
			if got := nodetest.Read(t, n, raftFile); got != "the KV" {
				t.Errorf("Consul's state is %q", got)
			}
			if _, err := os.Stat(n.Platform.Path(platform.ConsulConfigDir, "interconnection.json")); err == nil {
				t.Error("our file is there")
			}
		})
	}
}

// theirIP has one address and one route, where they are given. This machine's own stay as
// they are, and so does its firewall.
const theirIP = `#!/bin/sh
told() { [ ! -e "$0.$1" ] || while read -r line; do echo "$line "; done <"$0.$1"; }
case "$*" in
"addr show dev lo") echo "1: lo:"; told addr ;;
"addr add "*) echo "inet $3 scope global lo" >"$0.addr" ;;
"-4 route show table main") told route ;;
"route replace unreachable "*) echo "unreachable $4 metric $6" >"$0.route" ;;
esac
`

// programs are the only ones that the test finds by name: nothing of this machine
// is started, nor its firewall changed.
func programs(t *testing.T, scripts map[string]string) {
	t.Helper()
	bin := t.TempDir()
	own := map[string]string{"ip": theirIP}
	for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
		own[name] = "#!/bin/sh\nexit 1\n"
	}
	maps.Copy(own, scripts)
	for name, script := range own {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin)
}

// Another process may have changed what this one read, while it waited for the lock.
func TestARunThatIsNotToldWhatToBecomeBeginsNothing(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	n.Journal, n.Document.Config = nil, nil
	before := nodetest.Files(t, n.Platform.Root)
	ran, err := firstboot.Run(t.Context(), n, false)
	n.Unlock()
	if !errors.Is(err, firstboot.ErrNotDecided) || ran.Interrupted {
		t.Errorf("got %v; telephony was interrupted: %t", err, ran.Interrupted)
	}
	after := nodetest.Files(t, n.Platform.Root)
	delete(after, n.Platform.Path(node.LockFile))
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("written:\n%s", diff)
	}
}

func TestTelephonyThatWasNeverStoppedWasNotDown(t *testing.T) {
	n := cutOff(t)
	delete(n.Journal.Steps, "become.kv-export")
	if err := errors.Join(n.MakeStateDir(), n.KeepDocument(), n.Journal.Save()); err != nil {
		t.Fatal(err)
	}
	nodetest.Put(t, n, raftFile, "the KV")
	running(n, errors.New("no Consul answers"))
	ran, err := firstboot.Run(t.Context(), n, false)
	n.Unlock()
	if err == nil || !strings.Contains(err.Error(), "no Consul answers") || ran.Interrupted {
		t.Errorf("interrupted: %t, %v", ran.Interrupted, err)
	}
}

// A run makes the export again, since Consul may have run meanwhile.
func TestThePlanOfABecomeThatWasCutOffTellsWhatIsDoneOnceMore(t *testing.T) {
	n := cutOff(t)
	nodetest.Done(t, n, consulReset)
	nodetest.Put(t, n, raftFile, "of a Consul that ran meanwhile")
	planned, err := firstboot.Plan(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for _, e := range planned.Report {
		steps = append(steps, e.Step)
	}
	if want := []string{kvexport.ExportStep, kvexport.EmptyStep}; !slices.Equal(steps, want) {
		t.Errorf("planned: %q, want %q", steps, want)
	}
}
