package platform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
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

func TestTraitsFollowTheTable(t *testing.T) {
	for _, c := range []struct {
		version string
		want    Traits
	}{
		{"15.19", Traits{CtidCheckURL: true, UserDataInKV: true, Joinable: true}},
		{"16.01", Traits{ServiceAccountsInDatabase: true, UserDataInKV: true, Joinable: true}},
		{"16.03", Traits{ServiceAccountsInDatabase: true, UUIDInEnvironment: true, UserDataInKV: true, Joinable: true}},
		{"18.04", Traits{ServiceAccountsInDatabase: true, UUIDInEnvironment: true, WizardFlagInDatabase: true, ConsulPerformance: true}},
	} {
		got, err := traitsOf(mustVersion(c.version))
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v", c.version, got, err)
		}
	}
	if _, err := traitsOf(mustVersion("15.18")); err == nil {
		t.Error("15.18 is accepted")
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
	for content, ok := range map[string]bool{"16.03\n": true, "": false, "sixteen": false, "14.24": false} {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := Detect(root)
		if ok != (err == nil) {
			t.Errorf("%q: %v", content, err)
		}
		if err != nil && !strings.Contains(err.Error(), VersionFile) {
			t.Errorf("%q: the error does not name the file: %v", content, err)
		}
		if ok && p.Version.String() != "16.03" {
			t.Errorf("%q: version %s", content, p.Version)
		}
	}
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

func TestWriteFileKeepsTheModeAndLeavesNothingBeside(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		name := filepath.Join(dir, "config.json")
		mode := rapid.SampledFrom([]os.FileMode{0o600, 0o640, 0o644}).Draw(rt, "mode")
		content := rapid.SliceOf(rapid.Byte()).Draw(rt, "content")
		if err := os.WriteFile(name, []byte("before"), mode); err != nil {
			rt.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			rt.Fatal(err)
		}
		if err := WriteFile(name, content, 0o777); err != nil {
			rt.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != string(content) {
			rt.Errorf("content: %q, %v", got, err)
		}
		if st, _ := os.Stat(name); st.Mode().Perm() != mode {
			rt.Errorf("mode %o became %o", mode, st.Mode().Perm())
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			rt.Errorf("left behind: %v", entries)
		}
	})
}
