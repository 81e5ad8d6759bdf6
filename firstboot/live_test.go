package firstboot

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// services are all up or all down.
type services struct {
	manager
	up bool
}

func (s *services) Active(context.Context, string) (bool, error) { return s.up, nil }

const raftFile = platform.ConsulDataDir + "/raft/raft.db"

// cutOff is a node whose become was cut off, with an export of the KV.
func cutOff(t *testing.T) *Node {
	t.Helper()
	n := &Node{
		Platform: &platform.Platform{Root: t.TempDir(), Init: &services{}},
		Log:      slog.New(slog.DiscardHandler),
		Progress: func(Event) {},
		Config:   cloudinit.Alone(),
	}
	n.Journal = newJournal(n.Platform.Path(journalFile), Instance{}, Identity{UUID: uuid.New()})
	// What is not looked at here was done.
	for _, s := range BecomePhase.Steps {
		n.Journal.Steps["become."+s.Name] = Stamp{State: done}
	}
	delete(n.Journal.Steps, consulReset)
	put(t, n, exportFile, "the export")
	put(t, n, platform.CertificateFile, "a certificate")
	return n
}

func put(t *testing.T, n *Node, name, content string) {
	t.Helper()
	file := n.Platform.Path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// resumes begins again, as a later run or boot does.
func resumes(t *testing.T, n *Node) {
	t.Helper()
	n.exported = false
	if action, why, err := n.Begin(t.Context(), false); err != nil || action != Resume {
		t.Fatalf("%s (%s), %v", action, why, err)
	}
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
		gone, reset stampState
		want        string
	}{
		"while the state was removed": {running, running, export(original)},
		"right after that":            {done, running, export(original, since)},
		"later":                       {done, done, export(original, since)},
	} {
		t.Run(what, func(t *testing.T) {
			n := cutOff(t)
			put(t, n, exportFile, export(original))
			if err := errors.Join(n.Journal.stamp(consulGone, c.gone), n.Journal.stamp(consulReset, c.reset)); err != nil {
				t.Fatal(err)
			}
			put(t, n, raftFile, "of a Consul that began anew")

			resumes(t, n)
			p := BecomePhase
			p.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.Name != kvExport && s.Name != "consul-state" })
			p.Steps[0].Open = func(context.Context, *Node) (Resource, error) {
				return n.export(func(context.Context) error {
					return n.replaceExport(func(file string) error { return os.WriteFile(file, []byte(export(again, since)), 0o600) })
				}), nil
			}
			if _, err := n.Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := errors.Join(json.Unmarshal([]byte(contents(t, n, exportFile)), &got), json.Unmarshal([]byte(c.want), &want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the export (-want +got):\n%s", diff)
			}
			if left, _ := filepath.Glob(n.Platform.Path(platform.ConsulDataDir, "raft")); len(left) > 0 {
				t.Errorf("left is %q", left)
			}
			if left, _ := filepath.Glob(n.Platform.Path(exportFile) + ".*"); len(left) > 0 {
				t.Errorf("left is %q", left)
			}
		})
	}
}

// Once Consul's state is to stay, nothing is exported: there would be a copy of
// the KV that no step removes.
func TestNothingIsExportedOnceTheBecomeHasEnded(t *testing.T) {
	n := cutOff(t)
	n.Platform.Init = &services{up: true}
	n.consulErr = errors.New("it was asked")
	if err := errors.Join(os.Remove(n.Platform.Path(exportFile)), n.Journal.stamp(BecomePhase.Name, done)); err != nil {
		t.Fatal(err)
	}
	if err := n.exportLive(t.Context()); err != nil {
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
			n.Platform.Init = &services{up: c.up}
			n.consulErr = unreachable
			if c.sealed {
				n.manifest = &seal.Manifest{KV: seal.Sum([]byte("the export"))}
			}
			if c.raft {
				put(t, n, raftFile, "state")
			}
			resumes(t, n)
			if err := n.exportLive(t.Context()); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if got := contents(t, n, exportFile); got != "the export" {
				t.Errorf("the export is %q", got)
			}
			// And the boot after it goes on from that.
			step, err := kvExported(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if diff, err := step.Diff(t.Context()); err != nil || (diff == nil) != c.sealed {
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
			put(t, n, raftFile, "the KV, and more")
			// Consul's files were in use, so consul-state refused.
			open, err := os.Open(n.Platform.Path(raftFile))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.Run(t.Context(), BecomePhase); err == nil || !strings.Contains(err.Error(), "stop it first") {
				t.Fatalf("%v, want it to refuse what a process has open", err)
			}
			open.Close()

			resumes(t, n)
			p := BecomePhase
			p.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.Name != kvExport && s.Name != "consul-state" })
			p.Steps[0].Open = func(context.Context, *Node) (Resource, error) {
				return n.export(func(context.Context) error {
					return n.replaceExport(func(file string) error { return os.WriteFile(file, []byte("all of it"), 0o600) })
				}), nil
			}
			if live {
				// Exported while Consul ran; become finds that.
				if _, err := n.runStep(t.Context(), "become", p.Steps[0], 1, 2); err != nil {
					t.Fatal(err)
				}
				p.Steps[0].Open = kvExported
			}
			if _, err := n.Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			if got := contents(t, n, exportFile); got != "all of it" {
				t.Errorf("the export is %q", got)
			}
			if _, err := os.Stat(n.Platform.Path(raftFile)); err == nil {
				t.Error("Consul's state is still there")
			}
			if left, _ := filepath.Glob(n.Platform.Path(exportFile) + ".*"); len(left) > 0 {
				t.Errorf("left is %q", left)
			}
		})
	}
}

// Between old-keys and certificate no Consul can read the state, nor write to it.
func TestACopyThatIsCutOffWithoutACertificateGoesOn(t *testing.T) {
	n := cutOff(t)
	put(t, n, raftFile, "the KV")
	if err := os.Remove(n.Platform.Path(platform.CertificateFile)); err != nil {
		t.Fatal(err)
	}
	resumes(t, n)
	if _, err := n.Run(t.Context(), BecomePhase); err != nil {
		t.Error(err)
	}
	if got := contents(t, n, exportFile); got != "the export" {
		t.Errorf("the export is %q", got)
	}
}

// A copy of a node that was cut off has the KV in the export only, as that had.
func TestACopyOfANodeThatWasCutOffKeepsTheExport(t *testing.T) {
	n := aNode(t, "16.03", open(t, server.Postgres(t, schema.SQL("16.03"))))
	for _, retired := range []bool{true, false} {
		was := newJournal(n.Platform.Path(journalFile), Instance{ID: "original"}, n.Identity())
		was.Steps[consulGone] = Stamp{State: done}
		if retired {
			was.Steps["settle.kv-retire"] = Stamp{State: done}
		}
		n.Journal, n.Instance = was, Instance{ID: "copy"}
		if action, why, err := n.prepare(t.Context(), false); err != nil || action != Become {
			t.Fatalf("%s (%s), %v", action, why, err)
		}
		put(t, n, exportFile, `{"format": 1, "entries": [{"key": "a contact", "value": "b25l", "flags": 0}]}`)
		err := n.replaceExport(func(file string) error { return os.WriteFile(file, []byte(`{"format": 1, "entries": []}`), 0o600) })
		if err != nil {
			t.Fatal(err)
		}
		if kept := strings.Contains(contents(t, n, exportFile), "a contact"); kept == retired {
			t.Errorf("its restore was verified: %t; the export of the original is kept: %t", retired, kept)
		}
	}
}
