package disk_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
)

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// mounted is an image of this size with a file system, and where it is mounted.
type mounted struct {
	image string
	disk.FileSystem
}

func mount(t *testing.T, size int64, mkfs ...string) mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount an image")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, size); err != nil {
		t.Fatal(err)
	}
	command(t, "mkfs.ext4", append(append([]string{"-q", "-F"}, mkfs...), image)...)
	command(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	return mounted{image, found(t, dir)}
}

func found(t *testing.T, dir string) disk.FileSystem {
	t.Helper()
	all, err := disk.FileSystems()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Mount == dir {
			return f
		}
	}
	t.Fatalf("%s is not among %v", dir, all)
	return disk.FileSystem{}
}

// unmount ends the use of the image, and waits until its device is gone.
func (m mounted) unmount(t *testing.T) {
	t.Helper()
	command(t, "umount", "--detach-loop", m.Mount)
}

func (m mounted) holds(t *testing.T, text string) int {
	t.Helper()
	f, err := os.Open(m.image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hits, _ := search(t, f, []byte(text))
	return len(hits)
}

func TestWhatWasDeletedIsNotOnTheDisk(t *testing.T) {
	const content, name, kept = "a secret that was in a file", "a-secret-that-was-a-name", "what was never deleted"
	for _, c := range []struct {
		name string
		mkfs []string
	}{
		{"ext4", nil},
		{"ext4 of small blocks", []string{"-b", "1024"}},
		{"ext4 as old kernels know it", []string{"-O", "^64bit,^metadata_csum"}},
		{"ext4 without a journal", []string{"-O", "^has_journal"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := mount(t, 96<<20, c.mkfs...)
			write := func(name, content string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(m.Mount, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("kept", kept)
			for i := range 200 {
				write(fmt.Sprint("secret", i), strings.Repeat(content, 500))
				write(fmt.Sprint(name, i), "")
			}
			unix.Sync()
			before := m.holds(t, content)
			if before == 0 || m.holds(t, name) == 0 {
				t.Fatal("it is not on the disk before, so this proves nothing")
			}
			for i := range 200 {
				os.Remove(filepath.Join(m.Mount, fmt.Sprint("secret", i)))
				os.Remove(filepath.Join(m.Mount, fmt.Sprint(name, i)))
			}
			size, err := m.JournalSize()
			if hasJournal := !strings.Contains(fmt.Sprint(c.mkfs), "has_journal"); err != nil || (size > 0) != hasJournal {
				t.Errorf("its journal has %d bytes, %v", size, err)
			}
			if err := m.OverwriteJournal(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := m.ZeroFree(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if raw, err := os.ReadFile(filepath.Join(m.Mount, "kept")); err != nil || string(raw) != kept {
				t.Errorf("%q, %v", raw, err)
			}
			entries, err := os.ReadDir(m.Mount)
			if err != nil || len(entries) != 2 { // and lost+found
				t.Errorf("left: %v, %v", entries, err)
			}
			var st unix.Statfs_t
			if err := unix.Statfs(m.Mount, &st); err != nil || st.Bfree < st.Blocks/2 {
				t.Errorf("%d of %d blocks are free, %v", st.Bfree, st.Blocks, err)
			}
			m.unmount(t)
			if n := m.holds(t, content); n > 0 {
				t.Errorf("of %d copies of a deleted file's content, %d are on the disk", before, n)
			}
			if n := m.holds(t, name); n > 0 {
				t.Errorf("the name of a deleted file is in %d places", n)
			}
			command(t, "e2fsck", "-f", "-n", m.image)
		})
	}
}

func TestWhatTheFileSystemKeepsBackIsWrittenToo(t *testing.T) {
	m := mount(t, 512<<20)
	big := filepath.Join(m.Mount, "big")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	// Every block that a file may have at all.
	piece := bytes.Repeat([]byte("a secret of 16 b"), 1<<16)
	for {
		if _, err := f.Write(piece); err != nil {
			break
		}
	}
	f.Close()
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	var written int64
	if err := m.ZeroFree(t.Context(), func(n int64) { written = n }); err != nil {
		t.Fatal(err)
	}
	if written < 256<<20 {
		t.Errorf("progress told of %d bytes", written)
	}
	m.unmount(t)
	if n := m.holds(t, "a secret of 16 b"); n > 0 {
		t.Errorf("%d pieces are left", n)
	}
}

func TestZeroFreeThatIsEndedLeavesTheSpaceFree(t *testing.T) {
	m := mount(t, 600<<20)
	ctx, cancel := context.WithCancel(t.Context())
	if err := m.ZeroFree(ctx, func(int64) { cancel() }); err == nil {
		t.Fatal("it went on to the end")
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.Mount, &st); err != nil || st.Bfree < st.Blocks/2 {
		t.Errorf("%d of %d blocks are free, %v", st.Bfree, st.Blocks, err)
	}
}

func TestASwapAreaIsEmptiedAndStaysOne(t *testing.T) {
	if _, err := exec.LookPath("mkswap"); err != nil {
		t.Skip("needs mkswap")
	}
	area := filepath.Join(t.TempDir(), "swap")
	if err := os.WriteFile(area, bytes.Repeat([]byte("a secret "), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, "mkswap", "-U", uuid, area)
	if err := disk.ZeroSwap(t.Context(), area); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(area)
	if err != nil || len(raw) != 9<<20 || bytes.Contains(raw, []byte("a secret")) || !bytes.HasSuffix(raw[:4096], []byte("SWAPSPACE2")) {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if err := os.WriteFile(area, bytes.Repeat([]byte("a file "), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := disk.ZeroSwap(t.Context(), area); err == nil {
		t.Error("what is no swap area was written over")
	}
}

func TestFileSystemsOfAMachine(t *testing.T) {
	const list = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
23 22 0:5 / /dev rw,nosuid shared:2 - devtmpfs udev rw,size=1g
24 22 254:2 / /var/lib/my\040data rw,relatime - xfs /dev/vda2 rw
25 22 254:1 /srv /mnt/bound rw - ext4 /dev/vda1 rw
26 22 254:1 / /again rw - ext4 /dev/vda1 rw
27 22 11:0 / /media/cdrom ro,relatime - iso9660 /dev/sr0 ro
28 22 0:40 / /tmp rw - tmpfs tmpfs rw
29 22 254:3 / /boot ro,relatime - ext4 /dev/vda3 rw
30 22 7:0 /root /of-the-host rw - ext4 /dev/loop0 rw
`
	type fs struct{ Mount, Type string }
	var got []fs
	for _, f := range disk.ReadMounts(list) {
		got = append(got, fs{f.Mount, f.Type})
	}
	if diff := cmp.Diff([]fs{{"/", "ext4"}, {"/var/lib/my data", "xfs"}}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	swaps := disk.ReadSwaps("Filename Type Size Used Priority\n/dev/vda5 partition 1046524 0 -2\n/swap\\040file file 1 0 -3\n/dev/zram0 partition 1 0 5\n")
	if diff := cmp.Diff([]string{"/dev/vda5", "/swap file"}, swaps); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
