package nspawn

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	tar, raw := filepath.Join(dir, "root.tar.zst"), filepath.Join(dir, "disk.raw")
	for _, name := range []string{tar, raw} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	links := t.TempDir()
	link := filepath.Join(links, "source")
	for name, target := range map[string]string{"source": raw, "d": dir} {
		if err := os.Symlink(target, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	type settings map[string]any
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}

	t.Run("defaults for a tar", func(t *testing.T) {
		var c Config
		if _, err := c.Prepare(settings{"source_image": tar, "packer_build_name": "golden"}); err != nil {
			t.Fatal(err)
		}
		got := []any{c.imagePath(), c.Format, c.Network, c.BootTimeout, c.ShutdownTimeout, c.diskSize}
		want := []any{filepath.Join(wd, "output-golden/golden.qcow2"), "qcow2", "uplink", 5 * time.Minute, 2 * time.Minute, int64(8 << 30)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("everything said", func(t *testing.T) {
		var c Config
		_, err := c.Prepare(settings{
			"source_image": raw, "source_checksum": "SHA256:" + strings.Repeat("ab", 32),
			"output_directory": "/out", "apt_cache": "/out-of-it", "image_name": "x", "format": "raw", "disk_size": "20G",
			"network": "none", "boot_timeout": "90s", "shutdown_timeout": "1m",
		})
		if err != nil {
			t.Fatal(err)
		}
		got := []any{c.imagePath(), c.workPath(), c.Network, c.BootTimeout, c.ShutdownTimeout, c.diskSize}
		want := []any{"/out/x.raw", "/out/x.raw", "none", 90 * time.Second, time.Minute, int64(20 << 30)}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a disk image keeps its size", func(t *testing.T) {
		var c Config
		if _, err := c.Prepare(settings{"source_image": raw}); err != nil {
			t.Fatal(err)
		}
		if c.diskSize != 0 {
			t.Errorf("got %d", c.diskSize)
		}
	})

	for _, tc := range []struct {
		name     string
		settings settings
		want     string
	}{
		{"no source", settings{}, "source_image is required"},
		{"a source that is not there", settings{"source_image": "/no/such"}, "/no/such"},
		{"a folder as source", settings{"source_image": dir}, "is not a file"},
		{"an unknown setting", settings{"source_image": raw, "sourc_image": "x"}, "sourc_image"},
		{"an unknown format", settings{"source_image": raw, "format": "vmdk"}, `format "vmdk"`},
		{"an unknown network", settings{"source_image": raw, "network": "bridge"}, `network "bridge"`},
		{"a size without sense", settings{"source_image": raw, "disk_size": "big"}, "disk_size"},
		{"a size with an unknown unit", settings{"source_image": raw, "disk_size": "3X"}, "disk_size"},
		{"a size with a rest", settings{"source_image": raw, "disk_size": "3G and more"}, "disk_size"},
		{"a size that overflows", settings{"source_image": raw, "disk_size": "99999999T"}, "disk_size"},
		{"a disk too small for anything", settings{"source_image": raw, "disk_size": "1M"}, "at least 64M"},
		{"a checksum without a kind", settings{"source_image": raw, "source_checksum": strings.Repeat("ab", 32)}, "source_checksum"},
		{"a checksum too short", settings{"source_image": raw, "source_checksum": "sha256:abcd"}, "source_checksum"},
		{"an image name that leads elsewhere", settings{"source_image": raw, "image_name": "../x"}, "image_name"},
		{"a source in the folder that is emptied", settings{"source_image": raw, "output_directory": dir}, "source_image: " + raw + " is in output_directory"},
		{"a source whose link leads there", settings{"source_image": link, "output_directory": dir}, "source_image: " + link + " is in output_directory"},
		{"a cache in the folder that is emptied", settings{"source_image": raw, "output_directory": "/out", "apt_cache": "/out/apt/cache"}, "apt_cache: /out/apt/cache is in output_directory"},
		{"a cache in a folder whose link leads there", settings{"source_image": raw, "output_directory": filepath.Join(links, "d/out"), "apt_cache": dir + "/out/apt"}, "apt_cache:"},
		{"a negative timeout", settings{"source_image": raw, "boot_timeout": "-1s"}, "boot_timeout"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c Config
			_, err := c.Prepare(tc.settings)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error that says %q", err, tc.want)
			}
		})
	}
}

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"8G": 8 << 30, "8g": 8 << 30, "8GiB": 8 << 30, "512M": 512 << 20, "1T": 1 << 40, "67108864": 64 << 20, "70000K": 70000 << 10,
	} {
		if got, err := parseSize(s); got != want || err != nil {
			t.Errorf("%s: got %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestChecksum(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const right = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
	for s, ok := range map[string]bool{right: true, strings.Replace(right, "5", "6", 2): false} {
		sum, err := parseChecksum(strings.ReplaceAll(s, "sha266", "sha256"))
		if err != nil {
			t.Fatal(err)
		}
		if err := sum.verify(t.Context(), name); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}
