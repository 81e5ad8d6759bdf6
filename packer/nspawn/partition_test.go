package nspawn

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePartitions(t *testing.T) {
	// As sfdisk 2.38 prints it for a Debian cloud image, shortened.
	const gpt = `{"partitiontable": {"label":"gpt","device":"disk.raw","unit":"sectors","sectorsize":512,
		"partitions": [
			{"node":"disk.raw1","start":262144,"size":4192256,"type":"0FC63DAF-8483-4772-8E79-3D69D8477DE4"},
			{"node":"disk.raw14","start":2048,"size":6144},
			{"node":"disk.raw15","start":8192,"size":253952}]}}`
	got, err := parsePartitions([]byte(gpt))
	if err != nil {
		t.Fatal(err)
	}
	want := []*partition{
		{number: 14, start: 2048 * 512, size: 6144 * 512},
		{number: 15, start: 8192 * 512, size: 253952 * 512},
		{number: 1, start: 262144 * 512, size: 4192256 * 512},
	}
	unexported := cmp.AllowUnexported(partition{})
	if diff := cmp.Diff(want, got, unexported); diff != "" {
		t.Error("in the order of the disk:", diff)
	}
	if diff := cmp.Diff([]*partition{want[2], want[1], want[0]}, bySize(got), unexported); diff != "" {
		t.Error("by size:", diff)
	}

	for name, out := range map[string]string{
		"not JSON":              "sfdisk: no",
		"no partition":          `{"partitiontable": {"label":"dos"}}`,
		"a name without number": `{"partitiontable": {"partitions": [{"node":"disk"}]}}`,
	} {
		if _, err := parsePartitions([]byte(out)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFindKernel(t *testing.T) {
	for _, tc := range []struct {
		name           string
		files          []string
		links          map[string]string
		kernel, initrd string
		fails          bool
	}{
		{
			name:   "Debian's links are followed through upgrades",
			files:  []string{"boot/vmlinuz-6.1", "boot/initrd.img-6.1"},
			links:  map[string]string{"vmlinuz": "boot/vmlinuz-6.1", "initrd.img": "boot/initrd.img-6.1"},
			kernel: "/vmlinuz", initrd: "/initrd.img",
		}, {
			name:   "links in /boot",
			files:  []string{"boot/vmlinuz-6.1", "boot/initrd.img-6.1"},
			links:  map[string]string{"boot/vmlinuz": "vmlinuz-6.1", "boot/initrd.img": "initrd.img-6.1"},
			kernel: "/boot/vmlinuz", initrd: "/boot/initrd.img",
		}, {
			name:   "no links",
			files:  []string{"boot/vmlinuz-6.1", "boot/initrd.img-6.1"},
			kernel: "/boot/vmlinuz-6.1", initrd: "/boot/initrd.img-6.1",
		}, {
			name:   "links that lead nowhere",
			files:  []string{"boot/vmlinuz-6.1", "boot/initrd.img-6.1"},
			links:  map[string]string{"vmlinuz": "boot/vmlinuz-5.0", "initrd.img": "boot/initrd.img-5.0"},
			kernel: "/boot/vmlinuz-6.1", initrd: "/boot/initrd.img-6.1",
		},
		{name: "a kernel without its initrd", files: []string{"boot/vmlinuz-6.1", "boot/initrd.img-5.0"}, fails: true},
		{name: "no kernel", fails: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, name := range tc.files {
				if err := os.WriteFile(filepath.Join(root, name), nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for name, target := range tc.links {
				if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
					t.Fatal(err)
				}
			}
			kernel, initrd, err := findKernel(root)
			if kernel != tc.kernel || initrd != tc.initrd || (err != nil) != tc.fails {
				t.Errorf("got %q, %q, %v", kernel, initrd, err)
			}
		})
	}
}
