package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestProgress(t *testing.T) {
	for _, tc := range []struct {
		name  string
		ticks int
		err   error
		want  string
	}{
		{"a short step is one line", 0, nil, `^ 3/15 boot it \([0-9.]+m?s\)\n$`},
		{"a long one shows that it goes on", 3, nil, `^ 3/15 boot it \.\.\. \([0-9.]+m?s\)\n$`},
		{"one that fails says so", 1, errors.New("no disk"), `^ 3/15 boot it \.: FAILED \([0-9.]+m?s\)\n$`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out strings.Builder
			tick := make(chan time.Time)
			err := progress(&out, tick, 3, 15, "boot it", func() error {
				for range tc.ticks {
					tick <- time.Time{}
				}
				return tc.err
			})
			if !errors.Is(err, tc.err) {
				t.Errorf("got %v, want %v", err, tc.err)
			}
			if !regexp.MustCompile(tc.want).MatchString(out.String()) {
				t.Errorf("printed %q, want %s", out.String(), tc.want)
			}
		})
	}
}

func TestEstimateOfAnEmptyCacheIsThatOfAFirstTime(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", dir)
	n, err := estimate()
	if err != nil {
		t.Fatal(err)
	}
	if n.disk != firstDisk || n.takes != firstTakes || n.free == 0 {
		t.Errorf("an empty cache: %+v", n)
	}
	for _, kind := range []string{"base", "tools/consul", "tools/packer"} {
		if err := os.MkdirAll(filepath.Join(dir, "packer-plugin-xivo", kind, "0123456789abcdef"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if n, err = estimate(); err != nil || n.disk != laterDisk || n.takes != laterTakes {
		t.Errorf("a filled cache: %+v, %v", n, err)
	}
}

func TestADiskThatIsTooSmallIsRefused(t *testing.T) {
	n := needs{dir: "/cache", disk: 4e9, free: 3.9e9}
	if err := n.enough(); err == nil || !strings.Contains(err.Error(), "3.9 GB free in /cache, and the demo needs 4.0 GB") {
		t.Errorf("got %v", err)
	}
	n.free = n.disk
	if err := n.enough(); err != nil {
		t.Error(err)
	}
}
