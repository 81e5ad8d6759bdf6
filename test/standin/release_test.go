package standin

import (
	"path/filepath"
	"testing"
)

func TestRelease(t *testing.T) {
	for _, c := range []struct {
		text  string
		since Release
		want  bool
	}{
		{"16.03\n", Release{16, 3}, true},
		{"16.10", Release{16, 9}, true},
		{"15.20", Release{16, 1}, false},
		{"16.08.1", Release{16, 8}, true},
		{"16.08.1", Release{16, 9}, false},
		{"17.17", Release{16, 16}, true},
	} {
		file := filepath.Join(t.TempDir(), "XIVO-VERSION")
		write(t, file, c.text)
		r, err := ReadRelease(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.since(c.since[0], c.since[1]); got != c.want {
			t.Errorf("%q since %v: %v", c.text, c.since, got)
		}
	}
	for _, text := range []string{"", "latest", "16.x"} {
		if r, err := ParseRelease(text); err == nil {
			t.Errorf("%q is %v", text, r)
		}
	}
}
