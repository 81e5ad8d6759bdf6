package cache

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestMakeBuildsOnce(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	builds := 0
	build := func(dir string) error {
		builds++
		return os.WriteFile(filepath.Join(dir, "result"), []byte("made"), 0o644)
	}
	first, err := Make("kind", NewKey("a"), build)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Make("kind", NewKey("a"), build)
	if err != nil {
		t.Fatal(err)
	}
	if builds != 1 || first != second {
		t.Errorf("built %d times, into %s and %s", builds, first, second)
	}
}

func TestMakeLeavesNothingOfAFailedBuild(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	fail := errors.New("no network")
	_, err := Make("kind", NewKey("a"), func(dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			return err
		}
		return fail
	})
	if !errors.Is(err, fail) {
		t.Fatalf("got %v, want the build's error", err)
	}
	dir, err := Make("kind", NewKey("a"), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the second build found %v", left)
	}
}

func TestMakeKeepsOnlyTheNewestResults(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	var dirs []string
	for _, key := range []string{"a", "b", "c"} {
		dir, err := Make("kind", NewKey(key), func(string) error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	if _, err := os.Stat(dirs[0]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the oldest of three results is still there: %v", err)
	}
	for _, dir := range dirs[1:] {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestKeysTellTextsApart(t *testing.T) {
	if NewKey("ab", "c").String() == NewKey("a", "bc").String() {
		t.Error("two different lists of texts have one key")
	}
}

func TestScratchIsEmptyAndGoes(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir, _, err := Scratch("kind")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "of a killed process"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// The kernel drops a lock with its process; here it is in the way.
	if err := os.Remove(filepath.Join(filepath.Dir(dir), ".lock")); err != nil {
		t.Fatal(err)
	}

	dir, release, err := Scratch("kind")
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("it has %v", left)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it is still there after its release")
	}
}
