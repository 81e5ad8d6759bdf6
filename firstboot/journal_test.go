package firstboot

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const wholeJournal = `{"format": 1, "instance": {"id": "i-1", "product": ""},
 "identity": {"uuid": "5f0f5a4e-6c5f-4f3e-9a47-0d8d5b0f7a11", "hostname": "xivo", "name": "xivo-5f0f5a4e", "advertise": "10.0.0.1"},
 "steps": {"become": {"state": "done", "at": "2016-03-11T10:00:00Z"}, "settle.kv-import": {"state": "running", "at": "2016-03-11T10:00:01Z"}}}`

// A journal that cannot be trusted is an error; only a missing one is none.
func TestADamagedJournalIsAnError(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"empty, as after a full disk":  {"", "is damaged"},
		"the first half":               {wholeJournal[:len(wholeJournal)/2], "is damaged"},
		"zeros, as after a power cut":  {strings.Repeat("\x00", 512), "is damaged"},
		"null":                         {"null", "has format 0"},
		"of a later release":           {strings.Replace(wholeJournal, `"format": 1`, `"format": 2`, 1), "has format 2"},
		"without an identity":          {`{"format": 1, "steps": {}}`, "tells no identity"},
		"without steps":                {strings.Replace(wholeJournal, `"steps"`, `"others"`, 1), "no steps"},
		"a step in a state of its own": {strings.Replace(wholeJournal, `"done"`, `"dome"`, 1), `step "become" is "dome"`},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "journal.json")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if j, err := readJournal(file); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, %v; want an error that says %q", j, err, c.says)
			}
		})
	}
	p := &platform.Platform{Root: t.TempDir()}
	if j, err := readJournal(p.Path(journalFile)); j != nil || err != nil || MustBecome(p.Root) {
		t.Errorf("of a machine that never became anything: %v, %v", j, err)
	}
	// Without its journal, a node that was sealed once looks like an image.
	if err := os.MkdirAll(p.Path(platform.StateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path(manifestFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !MustBecome(p.Root) {
		t.Error("a sealed image would work as the original")
	}
	if err := os.WriteFile(p.Path(statusFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if j, err := readJournal(p.Path(journalFile)); j != nil || err == nil || !strings.Contains(err.Error(), "is gone, but") || MustBecome(p.Root) {
		t.Errorf("of a node whose journal was lost: %v, %v; it is held: %v", j, err, MustBecome(p.Root))
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
		j, err := parseJournal(raw, "journal.json")
		if err != nil {
			return
		}
		// What is accepted says the same when it was written again.
		written, err := json.Marshal(j)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseJournal(written, j.file)
		if err != nil {
			t.Fatalf("accepted, and not after it was written: %v", err)
		}
		if d := cmp.Diff(j, again, cmpopts.IgnoreUnexported(Journal{})); d != "" {
			t.Errorf("(-written +read):\n%s", d)
		}
	})
}
