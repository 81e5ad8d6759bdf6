package nspawn

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

const (
	mib = 1 << 20
	// sourceSize is that of the disks that the tests make.
	sourceSize = 128 * mib
)

// TestDisk copies disks as people have them, and finds and grows their root.
func TestDisk(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" || os.Geteuid() != 0 {
		t.Skip("mounts file systems: needs root and XIVO_LAB=1")
	}
	const rest = 128 - 40 // MiB behind the first 40
	for _, tc := range []struct {
		name   string
		script string // of sfdisk; empty: no partition table
		put    func(t *testing.T, disk string)
		grow   int64 // MiB; 0: leave it as it is
		root   int   // number of the partition that has it
		size   int64 // MiB of its file system
		err    string
	}{
		{name: "an MBR with one partition", script: "label: dos\nstart=2048, type=83, bootable\n",
			put: debianAt(1, 127), root: 1, size: 127},
		{name: "an MBR, grown", script: "label: dos\nstart=2048, type=83, bootable\n",
			put: debianAt(1, 127), grow: 200, root: 1, size: 199},
		{name: "a GPT whose root is first by number and last on the disk", script: "label: gpt\n1: start=81920\n15: start=2048, size=79872\n",
			put: debianAt(40, rest-1), root: 1, size: rest - 1},
		{name: "a GPT, grown: its copy moves to the new end", script: "label: gpt\n1: start=81920\n15: start=2048, size=79872\n",
			put: debianAt(40, rest-1), grow: 200, root: 1, size: 159},
		{name: "no partition table", put: debianAt(0, 128), root: 0, size: 128},
		{name: "not shut down cleanly", script: "label: dos\nstart=2048, type=83, bootable\n",
			put: dirtyDebianAt(1, 127), root: 1, size: 127},
		{name: "not shut down cleanly, grown", put: dirtyDebianAt(0, 128), grow: 200, root: 0, size: 200},
		{name: "no partition table, grown", put: debianAt(0, 128), grow: 200, root: 0, size: 200},
		{name: "something behind the root, to be grown", script: "label: dos\nstart=2048, size=81920, type=83\nstart=83968, type=82\n",
			put: debianAt(1, 40), grow: 200, err: "partition 2, the last, is not the root (partition 1): leave disk_size out"},
		{name: "to be shrunk", put: debianAt(0, 128), grow: 64, err: "it can be grown, not shrunk"},
		{name: "the root on LVM", script: "label: dos\nstart=2048, type=8e\n", put: lvmAt(1),
			err: "partition 1 is a LVM2_member, which this builder does not open: use Packer's qemu builder"},
		{name: "the whole disk on LVM", put: lvmAt(0),
			err: "the disk, which has no partition table, is a LVM2_member"},
		{name: "the root encrypted", script: "label: dos\nstart=2048, type=83\n", put: bytesAt(1, "LUKS\xba\xbe\x00\x01"),
			err: "partition 1 is a crypto_LUKS"},
		{name: "a data disk", put: emptyAt(0, 128), err: "has no /etc/debian_version"},
		{name: "an empty disk", put: func(*testing.T, string) {}, err: "no Debian root is in the source image"},
		{name: "a partition table and nothing else", script: "label: gpt\n", put: func(*testing.T, string) {}, err: "has no partition"},
	} {
		for _, format := range []string{FormatRaw, FormatQCOW2} {
			t.Run(tc.name+", "+format, func(t *testing.T) {
				t.Parallel()
				sandbox, err := machine.NewSandbox(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer sandbox.Close()
				dir := t.TempDir()
				source := filepath.Join(dir, "source")
				makeFile(t, source)
				if tc.script != "" {
					if err := (&disk{sandbox, source}).sfdisk(t.Context(), tc.script); err != nil {
						t.Fatal(err)
					}
				}
				tc.put(t, source)
				if format == FormatQCOW2 {
					do(t, "qemu-img", "convert", "-O", "qcow2", source, source+".qcow2")
					source += ".qcow2"
				}

				d := &disk{sandbox, filepath.Join(dir, "work")}
				root, err := d.copy(t.Context(), source, tc.grow*mib)
				if tc.err != "" {
					if err == nil || !strings.Contains(err.Error(), tc.err) {
						t.Errorf("got %v, want an error that says %q", err, tc.err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				isPrivate(t, d.path)
				if root.number != tc.root {
					t.Errorf("the root is partition %d, want %d", root.number, tc.root)
				}
				if st, err := os.Stat(d.path); err != nil || st.Size() != max(sourceSize, tc.grow*mib) {
					t.Errorf("the disk has %d bytes (%v)", st.Size(), err)
				}
				out, err := exec.Command("dumpe2fs", "-h", fmt.Sprintf("%s?offset=%d", d.path, root.start)).CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				if have := number(t, out, "Block count:") * number(t, out, "Block size:") / mib; have != tc.size {
					t.Errorf("its file system has %d MiB, want %d", have, tc.size)
				}
				if err := mount(t.Context(), sandbox, d.path, root, "ro"); err != nil {
					t.Fatal(err)
				}
				if raw, err := os.ReadFile(sandbox.Path(rootDir, "etc/debian_version")); err != nil || string(raw) != "12.0\n" {
					t.Errorf("what was in it: %q, %v", raw, err)
				}
				if err := sandbox.Run(t.Context(), "umount", rootDir); err != nil {
					t.Fatal(err)
				}
				if tc.script != "" {
					do(t, "sfdisk", "--verify", d.path)
				}
			})
		}
	}
}

// isPrivate wants nobody but its owner to read a disk.
func isPrivate(t *testing.T, name string) {
	t.Helper()
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v, %v; others may read what is on the disk", name, st.Mode(), err)
	}
}

func TestADiskThatOthersCouldReadBecomesPrivate(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, []byte("of an earlier build"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := makePrivate(name); err != nil {
			t.Fatal(err)
		}
		isPrivate(t, name)
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// number reads a line of what dumpe2fs prints.
func number(t *testing.T, out []byte, label string) int64 {
	t.Helper()
	for line := range strings.Lines(string(out)) {
		if value, ok := strings.CutPrefix(line, label); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no %q in:\n%s", label, out)
	return 0
}

// debianAt puts an ext4 with the mark of a Debian at start, in MiB.
func debianAt(start, size int64) func(*testing.T, string) {
	return func(t *testing.T, disk string) {
		t.Helper()
		root := t.TempDir()
		if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc/debian_version"), []byte("12.0\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		do(t, "mkfs.ext4", "-q", "-F", "-d", root, "-E", "offset="+strconv.FormatInt(start*mib, 10), disk, fmt.Sprintf("%dM", size))
	}
}

// dirtyDebianAt marks its journal as one that is to be replayed.
func dirtyDebianAt(start, size int64) func(*testing.T, string) {
	return func(t *testing.T, disk string) {
		t.Helper()
		debianAt(start, size)(t, disk)
		do(t, "debugfs", "-w", "-R", "feature needs_recovery", fmt.Sprintf("%s?offset=%d", disk, start*mib))
	}
}

// emptyAt puts an ext4 with nothing in it.
func emptyAt(start, size int64) func(*testing.T, string) {
	return func(t *testing.T, disk string) {
		t.Helper()
		do(t, "mkfs.ext4", "-q", "-F", "-E", "offset="+strconv.FormatInt(start*mib, 10), disk, fmt.Sprintf("%dM", size))
	}
}

// lvmAt puts the label of a physical volume, as the LVM2 on-disk format has it:
// in the second sector, with a checksum over what follows its 20 bytes of head.
func lvmAt(start int64) func(*testing.T, string) {
	label := make([]byte, sector)
	copy(label, "LABELONE\x01")
	copy(label[20:], "\x20\x00\x00\x00LVM2 001"+strings.Repeat("x", 32))
	sum := ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, label[20:])
	copy(label[16:], []byte{byte(sum), byte(sum >> 8), byte(sum >> 16), byte(sum >> 24)})
	return bytesAt(start, strings.Repeat("\x00", sector)+string(label))
}

func bytesAt(start int64, content string) func(*testing.T, string) {
	return func(t *testing.T, disk string) {
		t.Helper()
		f, err := os.OpenFile(disk, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(content), start*mib); err != nil {
			t.Fatal(err)
		}
	}
}

func makeFile(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(sourceSize); err != nil {
		t.Fatal(err)
	}
}

func do(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// TestUnpack unpacks every kind of tar, and makes its root bootable.
func TestUnpack(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" || os.Geteuid() != 0 {
		t.Skip("mounts file systems: needs root and XIVO_LAB=1")
	}
	root := t.TempDir()
	do(t, "sh", "-ec", `cd "$0"; mkdir etc boot; echo 12.0 >etc/debian_version; touch boot/vmlinuz-6.1 boot/initrd.img-6.1
		ln -s boot/vmlinuz-6.1 vmlinuz; ln -s boot/initrd.img-6.1 initrd.img`, root)
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst"} {
		t.Run(suffix, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			source := filepath.Join(dir, "root"+suffix)
			do(t, "tar", "-C", root, "--auto-compress", "-cf", source, ".")
			sandbox, err := machine.NewSandbox(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer sandbox.Close()
			d := &disk{sandbox, filepath.Join(dir, "work")}
			p, err := d.format(t.Context(), sourceSize)
			if err != nil {
				t.Fatal(err)
			}
			isPrivate(t, d.path)
			if err := mount(t.Context(), sandbox, d.path, p, "rw"); err != nil {
				t.Fatal(err)
			}
			state := new(multistep.BasicStateBag)
			state.Put(stateUI, &packersdk.BasicUi{Reader: new(bytes.Reader), Writer: io.Discard, ErrorWriter: io.Discard})
			state.Put(stateSandbox, sandbox)
			if action := (&stepUnpack{&Config{SourceImage: source}}).Run(t.Context(), state); action != multistep.ActionContinue {
				t.Fatal(state.Get(stateError))
			}
			for name, want := range map[string]string{"etc/debian_version": "12.0", "boot/extlinux/extlinux.conf": "linux /vmlinuz"} {
				if got, err := os.ReadFile(sandbox.Path(rootDir, name)); err != nil || !strings.Contains(string(got), want) {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			}
			if err := sandbox.Run(t.Context(), "umount", rootDir); err != nil {
				t.Fatal(err)
			}
		})
	}
}
