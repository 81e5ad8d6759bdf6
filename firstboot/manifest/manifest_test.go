package manifest_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
)

func TestTheManifestKeepsWhatAnEarlierSealTookOut(t *testing.T) {
	type ops = []manifest.Operation
	first, second, third := time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	m := &manifest.Manifest{At: first, Operations: ops{{Name: "uuid", Removed: []string{"the UUID"}}, {Name: "logs", Removed: []string{"old"}}, {Name: "raft"}}}
	for _, at := range []time.Time{second, third} {
		next := &manifest.Manifest{At: at, Operations: ops{{Name: "uuid"}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}}
		next.Keep(m)
		want := ops{{Name: "uuid", Removed: []string{"the UUID"}, Earlier: &first}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}
		if d := cmp.Diff(want, next.Operations); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		m = next
	}
}

// What was not done has no proof, whatever an earlier seal took out.
func TestOnlyWhatWasDoneIsProved(t *testing.T) {
	earlier := time.Unix(1, 0)
	m := &manifest.Manifest{Operations: []manifest.Operation{
		{Name: "removed", Removed: []string{"it"}},
		{Name: "nothing to remove"},
		{Name: "left out", Disabled: true},
		{Name: "left out, and removed earlier", Disabled: true, Removed: []string{"it"}, Earlier: &earlier},
		{Name: "skipped", Skipped: "this version has none"},
		{Name: "skipped, and removed earlier", Skipped: "this version has none", Removed: []string{"it"}, Earlier: &earlier},
	}}
	for name, want := range map[string]bool{
		"removed":                       true,
		"nothing to remove":             true,
		"left out":                      false,
		"left out, and removed earlier": false,
		"skipped":                       false,
		"skipped, and removed earlier":  false,
		"unknown":                       false,
	} {
		if got := m.Proved(name); got != want {
			t.Errorf("%s: proved is %t", name, got)
		}
	}
}

func TestAManifestIsReadStrictly(t *testing.T) {
	file := filepath.Join(t.TempDir(), "seal.json")
	if m, err := manifest.Read(file); m != nil || err != nil {
		t.Errorf("where there is none: %v, %v", m, err)
	}
	written := &manifest.Manifest{
		Format: 1, At: time.Unix(1, 0).UTC(), Firstboot: "1.0.0", XiVO: "16.03", KV: manifest.Sum([]byte("the export")),
		Operations: []manifest.Operation{{Name: "uuid", Text: "no UUID", Counterpart: "become", Removed: []string{"the UUID"}}, {Name: "rows", Skipped: "this version has none"}, {Name: "logs", Disabled: true}},
		Files:      map[string]string{"/usr/local/sbin/x": manifest.Sum([]byte("#!"))},
	}
	raw, err := json.Marshal(written)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ content, says string }{
		{string(raw), ""},
		{string(raw[:len(raw)/2]), "is damaged"},
		{"", "is damaged"},
		{`{"format": 2}`, "has format 2"},
		{`{}`, "has format 0"},
	} {
		if err := os.WriteFile(file, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := manifest.Read(file)
		if c.says == "" {
			if diff := cmp.Diff(written, m); diff != "" || err != nil {
				t.Errorf("%v; -want +got:\n%s", err, diff)
			}
			continue
		}
		if m != nil || err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v, %v; want an error with the file that says %q", c.content, m, err, c.says)
		}
	}
}
