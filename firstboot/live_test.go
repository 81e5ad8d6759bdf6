package firstboot

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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

const (
	raftFile   = platform.ConsulDataDir + "/raft/raft.db"
	exportStep = "become." + kvExport
)

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
// that was cut off had emptied it.
func TestAResumedRunKeepsTheOriginalExport(t *testing.T) {
	for _, stamp := range []stampState{running, done} {
		t.Run("consul-state "+string(stamp), func(t *testing.T) {
			n := cutOff(t)
			n.Platform.Init = &services{up: true}
			if err := errors.Join(n.Journal.stamp(consulGone, done), n.Journal.stamp(consulReset, stamp)); err != nil {
				t.Fatal(err)
			}
			put(t, n, raftFile, "of a Consul that began anew")

			resumes(t, n)
			if err := n.exportLive(t.Context()); err != nil {
				t.Fatal(err)
			}
			if !n.Journal.Done(exportStep) {
				t.Error("the KV would be exported again")
			}
			if got := contents(t, n, exportFile); got != "the export" {
				t.Errorf("the export is %q", got)
			}
			if n.Journal.Done(consulReset) {
				t.Error("what Consul wrote since would stay")
			}
		})
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
	put(t, n, exportFile, "the export")
	put(t, n, raftFile, "of a Consul that began anew")
	put(t, n, platform.CertificateFile, "a certificate")
	for retired, wants := range map[bool]bool{true: true, false: false} {
		was := newJournal(n.Platform.Path(journalFile), Instance{ID: "original"}, n.Identity())
		was.Steps[consulGone] = Stamp{State: done}
		if retired {
			was.Steps["settle.kv-retire"] = Stamp{State: done}
		}
		n.Journal, n.Instance = was, Instance{ID: "copy"}
		if action, why, err := n.prepare(t.Context(), false); err != nil || action != Become {
			t.Fatalf("%s (%s), %v", action, why, err)
		}
		step, err := kvExported(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		if diff, err := step.Diff(t.Context()); err != nil || (diff != nil) != wants {
			t.Errorf("its restore was verified: %t; to do: %q, %v", retired, diff, err)
		}
	}
}
