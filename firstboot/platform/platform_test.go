package platform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVersionsCompareNumberByNumber(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"15.9", "15.19", -1},
		{"16.10", "16.9", 1},
		{"16.08.1", "16.08", 1},
		{"16.10.hotfix", "16.10", 0},
		{"16.3", "16.03", 0},
		{"15.20", "16.01", -1},
		{"2017.11.04", "18.03", 1},
	} {
		a, errA := ParseVersion(c.a)
		b, errB := ParseVersion(c.b)
		if errA != nil || errB != nil {
			t.Fatal(errA, errB)
		}
		if got := a.Compare(b); got != c.want {
			t.Errorf("%s against %s: %d, want %d", c.a, c.b, got, c.want)
		}
		if got := b.Compare(a); got != -c.want {
			t.Errorf("%s against %s: %d, want %d", c.b, c.a, got, -c.want)
		}
	}
}

func TestWhatIsNoVersion(t *testing.T) {
	for _, s := range []string{"", "16", "16.", "16.x", "v16.03", "16.-3", "hotfix", "16.hotfix", "16.03 ", "99999.1"} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("%q was read as %v", s, v)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	for _, s := range []string{"15.19", "16.08.1", "16.10.hotfix", "", "..", "16.03\n", "9999.9999"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		v, err := ParseVersion(s)
		if err != nil {
			return
		}
		if v.Compare(v) != 0 || v.String() != s {
			t.Errorf("%q: %v", s, v)
		}
	})
}

// row is docs/xivo/versions.md, The table of the code, one column a trait.
type row struct {
	version             string
	schema              string // accesswebservice, ctidirectories, infos
	uuid                string // where daemons take it from
	ctid                string // its check, and whom it asks for a peer's statuses
	presenceCredentials bool
	keys                string
	wizard              string
	performance         bool
	command             string
	joinable            bool
}

var table = []row{
	{"15.19", "obj uri -", "database", "url peer", false, "files", "file", false, "xivo-service", true},
	{"15.20", "obj uri -", "database", "url peer", false, "files", "file", false, "xivo-service", true},
	{"16.01", "acl uri -", "database", "ttl peer", false, "accounts", "file", false, "xivo-service", true},
	{"16.02", "acl uri -", "both", "ttl peer", false, "accounts", "file", false, "xivo-service", true},
	{"16.03", "acl uri -", "both", "ttl peer", false, "accounts", "file", false, "xivo-service", true},
	{"16.05", "acl uri -", "both", "ttl peer", false, "accounts", "file", false, "xivo-service", true},
	{"16.06", "acl uri -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.08.1", "acl uri -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.10.hotfix", "acl uri -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.12", "acl uri -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.13", "acl directory_id -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.14", "acl directory_id -", "both", "ttl peer", false, "accounts", "database", false, "xivo-service", true},
	{"16.15", "acl directory_id -", "both", "ttl peer", true, "accounts", "database", false, "xivo-service", true},
	{"16.16", "acl directory_id -", "both", "ttl peer", true, "accounts", "database", true, "xivo-service", true},
	{"17.01", "acl directory_id wazo_version", "both", "ttl peer", true, "accounts", "database", true, "xivo-service", true},
	{"17.02", "acl directory_id wazo_version", "both", "ttl peer", true, "accounts", "database", true, "xivo-service", true},
	{"17.03", "acl directory_id wazo_version", "environment", "ttl peer", true, "accounts", "database", true, "xivo-service", true},
	{"17.15", "acl directory_id wazo_version", "environment", "ttl peer", true, "accounts", "database", true, "xivo-service", true},
	{"17.16", "acl directory_id wazo_version", "environment", "ttl self", true, "accounts", "database", true, "xivo-service", true},
	{"17.17", "acl directory_id wazo_version", "environment", "ttl self", true, "accounts", "database", true, "wazo-service", true},
	{"18.03", "acl directory_id wazo_version", "environment", "ttl self", true, "accounts", "database", true, "wazo-service", true},
	{"18.04", "- - -", "environment", "ttl self", true, "accounts", "database", true, "wazo-service", false},
}

func rowOf(v string, t Traits) row {
	pick := func(cases ...any) string { // condition, word, …, otherwise
		for i := 0; i+1 < len(cases); i += 2 {
			if cases[i].(bool) {
				return cases[i+1].(string)
			}
		}
		return cases[len(cases)-1].(string)
	}
	has := func(columns ...string) string {
		for _, c := range columns {
			if t.Columns[c] {
				return c[strings.IndexByte(c, '.')+1:]
			}
		}
		return "-"
	}
	return row{
		version:             v,
		schema:              has("accesswebservice.acl", "accesswebservice.obj") + " " + has("ctidirectories.directory_id", "ctidirectories.uri") + " " + has("infos.wazo_version"),
		uuid:                pick(t.UUIDFromEnvironment, "environment", t.UUIDInEnvironment, "both", "database"),
		ctid:                pick(t.CtidCheckURL, "url", "ttl") + " " + pick(t.CtidAsksPeers, "peer", "self"),
		presenceCredentials: t.PresenceCredentials,
		keys:                pick(len(t.KeyFiles) > 0, "files", "accounts"),
		wizard:              pick(t.WizardFlagInDatabase, "database", "file"),
		performance:         t.ConsulPerformance,
		command:             t.ServiceCommand,
		joinable:            t.Joinable,
	}
}

func TestTraitsFollowTheTable(t *testing.T) {
	for _, want := range table {
		traits, err := traitsOf(mustVersion(want.version))
		if err != nil {
			t.Errorf("%s: %v", want.version, err)
			continue
		}
		if diff := cmp.Diff(want, rowOf(want.version, traits), cmp.AllowUnexported(row{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", want.version, diff)
		}
		if traits.Joinable && len(traits.Columns) != 5 {
			t.Errorf("%s: %d columns; each tells of every version", want.version, len(traits.Columns))
		}
	}
}

func TestDetectNamesTheFileThatIsWrong(t *testing.T) {
	root := t.TempDir()
	if _, err := Detect(root); err == nil || !strings.Contains(err.Error(), VersionFile) {
		t.Errorf("no version: %v", err)
	}
	file := filepath.Join(root, VersionFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, content string
		want          string // "" is a refusal
	}{
		{"a release", "16.03\n", "16.03"},
		{"a correction of one", "16.08.1\n", "16.08.1"},
		{"a hotfix", "16.10.hotfix\n", "16.10.hotfix"},
		{"the first one", "15.19", "15.19"},
		{"one after the last one", "19.05\n", "19.05"},
		{"the one before the first", "15.18\n", ""},
		{"older, with a greater digit", "15.9\n", ""},
		{"much older", "14.24\n", ""},
		{"empty", "", ""},
		{"a word", "sixteen", ""},
		{"two lines", "16.03\n16.04\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(file, []byte(c.content), 0o644); err != nil {
				t.Fatal(err)
			}
			p, err := Detect(root)
			switch {
			case c.want == "" && err == nil:
				t.Errorf("%q was taken for %s", c.content, p.Version)
			case c.want == "" && !strings.Contains(err.Error(), VersionFile):
				t.Errorf("the error does not name the file: %v", err)
			case c.want != "" && (err != nil || p.Version.String() != c.want):
				t.Errorf("%q: %v, %v", c.content, p, err)
			}
		})
	}
	t.Run("a file that cannot be read", func(t *testing.T) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(file, 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := Detect(root); err == nil || !strings.Contains(err.Error(), VersionFile) {
			t.Errorf("%v", err)
		}
	})
	t.Run("the file of older packages", func(t *testing.T) {
		old := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(old, OldVersionFile)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(old, OldVersionFile), []byte("15.20\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := Detect(old); err != nil || p.VersionFile != OldVersionFile {
			t.Errorf("%+v, %v", p, err)
		}
	})
}

func TestByteSwappedProductsAreOneMachine(t *testing.T) {
	const a, swapped = "4c4c4544-0051-3510-8052-b4c04f4a4d31", "44454c4c-5100-1035-8052-b4c04f4a4d31"
	if !SameProduct(a, swapped) || !SameProduct(swapped, a) || !SameProduct(a, strings.ToUpper(a)) {
		t.Error("one machine is taken for two")
	}
	if SameProduct(a, "4c4c4544-0051-3510-8052-b4c04f4a4d32") {
		t.Error("two machines are taken for one")
	}
}
