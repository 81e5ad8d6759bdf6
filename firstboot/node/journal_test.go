package node_test

import (
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const journalFile = platform.StateDir + "/journal.json"

const wholeJournal = `{"format": 1, "instance": {"id": "i-1", "product": ""},
 "identity": {"uuid": "5f0f5a4e-6c5f-4f3e-9a47-0d8d5b0f7a11", "hostname": "xivo", "name": "xivo-5f0f5a4e", "advertise": "10.0.0.1"},
 "steps": {"become": {"state": "done", "at": "2016-03-11T10:00:00Z"}, "settle.kv-import": {"state": "running", "at": "2016-03-11T10:00:01Z"}}}`

// machine is one below an empty root, of which the version is known.
func machine(t *testing.T) *node.Node {
	t.Helper()
	n := nodetest.Bare(t)
	nodetest.Put(t, n, platform.VersionFile, "16.03")
	return n
}

// reopen is what another process finds.
func reopen(t *testing.T, n *node.Node) *node.Node {
	t.Helper()
	again, err := node.Open(n.Platform.Root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	return again
}

// A journal that cannot be trusted is an error; only a missing one is none.
func TestADamagedJournalIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty, as after a full disk":  {"", "is damaged"},
		"cut off":                      {"{", "is damaged"},
		"the first half":               {wholeJournal[:len(wholeJournal)/2], "is damaged"},
		"zeros, as after a power cut":  {strings.Repeat("\x00", 512), "is damaged"},
		"null":                         {"null", "has format 0"},
		"of a later release":           {strings.Replace(wholeJournal, `"format": 1`, `"format": 2`, 1), "has format 2"},
		"of another release":           {`{"format": 9}`, "has format 9"},
		"without an identity":          {`{"format": 1, "steps": {}}`, "tells no identity"},
		"without steps":                {strings.Replace(wholeJournal, `"steps"`, `"others"`, 1), "no steps"},
		"a step in a state of its own": {strings.Replace(wholeJournal, `"done"`, `"dome"`, 1), `step "become" is "dome"`},
	} {
		t.Run(name, func(t *testing.T) {
			n := machine(t)
			nodetest.Put(t, n, journalFile, c.text)
			says := func(err error) bool {
				return err != nil && strings.Contains(err.Error(), c.says) && strings.Contains(err.Error(), n.Platform.Path(journalFile))
			}
			if got, err := node.Open(n.Platform.Root, n.Log); got != nil || !says(err) {
				t.Errorf("got %v, %v; want an error that says %q", got, err, c.says)
			}
			// Nor is it taken for a fresh start by whoever gets the lock.
			if err := n.Lock(); !says(err) || n.Journal != nil {
				t.Errorf("with the lock: %v, %v; want an error that says %q", n.Journal, err, c.says)
			}
		})
	}
	n := machine(t)
	root := n.Platform.Root
	if got, err := node.Open(root, n.Log); err != nil || got.Journal != nil || node.MustBecome(root) {
		t.Errorf("of a machine that never became anything: %v, %v", got, err)
	}
	// Without its journal, a node that was sealed once looks like an image.
	nodetest.Put(t, n, node.ManifestFile, "{}")
	if !node.MustBecome(root) {
		t.Error("a sealed image would work as the original")
	}
	nodetest.Put(t, n, node.StatusFile, "{}")
	if got, err := node.Open(root, n.Log); got != nil || err == nil || !strings.Contains(err.Error(), "is gone, but") || node.MustBecome(root) {
		t.Errorf("of a node whose journal was lost: %v, %v; it is held: %v", got, err, node.MustBecome(root))
	}
}

func TestTheJournalIsReadBackAsItWasWritten(t *testing.T) {
	n := machine(t)
	n.Instance = instance("i-1", productA)
	j := n.NewJournal(node.Identity{UUID: uuid.New(), Name: "xivo-1"})
	if err := n.MakeStateDir(); err != nil {
		t.Fatal(err)
	}
	if err := j.Stamp("become.hostname", engine.Running); err != nil {
		t.Fatal(err)
	}
	if err := j.Stamp("become.uuid-files", engine.Done); err != nil {
		t.Fatal(err)
	}
	got := reopen(t, n).Journal
	if got.Identity != j.Identity || got.Instance != j.Instance || got.Done("become.hostname") || !got.Done("become.uuid-files") {
		t.Errorf("%+v", got)
	}
	if !got.Begun("become.hostname") || got.Begun("become.certificate") {
		t.Errorf("begun: %+v", got.Steps)
	}
	if st, _ := os.Stat(n.Platform.Path(journalFile)); st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", st.Mode())
	}
}

func FuzzJournal(f *testing.F) {
	f.Add([]byte(wholeJournal))
	f.Add([]byte(`{"format": 1, "identity": {"uuid": "{5f0f5a4e-6c5f-4f3e-9a47-0d8d5b0f7a11}"}, "steps": {}}`))
	f.Add([]byte(`{"format": 1, "identity": {"uuid": "00000000-0000-0000-0000-000000000000"}, "steps": {"": {}}}`))
	f.Add([]byte(`{"format": 1e0, "FORMAT": 2, "steps": {"become": null}}`))
	f.Add([]byte("null"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		j, err := node.ParseJournal(raw, "journal.json")
		if err != nil {
			return
		}
		// What is accepted says the same when it was written again.
		written, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		again, err := node.ParseJournal(written, "journal.json")
		if err != nil {
			t.Fatalf("accepted, and not after it was written: %v", err)
		}
		if d := cmp.Diff(j, again, cmpopts.IgnoreUnexported(node.Journal{})); d != "" {
			t.Errorf("(-written +read):\n%s", d)
		}
	})
}
