package disk_test

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
)

func search(t testing.TB, f *os.File, all ...[]byte) ([]disk.Hit, disk.Read) {
	t.Helper()
	p, err := disk.NewPatterns(all)
	if err != nil {
		t.Fatal(err)
	}
	var hits []disk.Hit
	read, err := disk.Search(t.Context(), f, p, func(h disk.Hit) { hits = append(hits, h) }, nil)
	if err != nil {
		t.Fatal(err)
	}
	return hits, read
}

// made is a sparse file of this size with these texts at these places.
func made(t testing.TB, size int64, texts map[int64]string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, at := range slices.Sorted(maps.Keys(texts)) {
		if _, err := f.WriteAt([]byte(texts[at]), at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

const (
	uuid  = "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6e"
	token = "a-token-of-28-characters-or-so"
	short = "12345678"
)

func TestSearchFindsWhatIsThere(t *testing.T) {
	const mega = 1 << 20
	for _, c := range []struct {
		name  string
		size  int64
		texts map[int64]string
		want  []disk.Hit
	}{
		{"nothing on an empty disk", 0, nil, nil},
		{"nothing on a disk of holes", 64 * mega, nil, nil},
		{"nothing but the beginning of it", 4096, map[int64]string{0: uuid[:35], 1000: uuid[1:]}, nil},
		{"at the first byte and at the last", 4096, map[int64]string{0: uuid, 4096 - int64(len(token)): token}, []disk.Hit{{Pattern: 0, At: 0}, {Pattern: 1, At: 4096 - int64(len(token))}}},
		{"over the border of two pieces that are read", 16 * mega, map[int64]string{0: strings.Repeat("x", 16*mega), 4*mega - 3: uuid, 8*mega - 1: token}, []disk.Hit{{Pattern: 0, At: 4*mega - 3}, {Pattern: 1, At: 8*mega - 1}}},
		{"the shortest as a whole in what two pieces share", 8 * mega, map[int64]string{0: strings.Repeat("x", 8*mega), 4*mega - 9: short}, []disk.Hit{{Pattern: 2, At: 4*mega - 9}}},
		{"between holes", 256 * mega, map[int64]string{77*mega + 5: token, 200 * mega: uuid + uuid}, []disk.Hit{{Pattern: 1, At: 77*mega + 5}, {Pattern: 0, At: 200 * mega}, {Pattern: 0, At: 200*mega + 36}}},
		{"within another text", 4096, map[int64]string{7: "55" + uuid[:20] + uuid + "d2e7a14"}, []disk.Hit{{Pattern: 0, At: 29}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hits, read := search(t, made(t, c.size, c.texts), []byte(uuid), []byte(token), []byte(short))
			slices.SortFunc(hits, func(a, b disk.Hit) int { return int(a.At - b.At) })
			if diff := cmp.Diff(c.want, hits); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			if read.At != c.size || read.Of != c.size {
				t.Errorf("it read up to %d of %d bytes, and there are %d", read.At, read.Of, c.size)
			}
		})
	}
	t.Run("a pattern that ends with zeros, before a hole", func(t *testing.T) {
		f := made(t, 64*mega, map[int64]string{32*mega - 8: "12345678"})
		if hits, _ := search(t, f, []byte("12345678\x00\x00\x00\x00\x00\x00\x00\x00")); len(hits) != 1 {
			t.Errorf("found %v", hits)
		}
	})
	t.Run("holes are not read", func(t *testing.T) {
		if _, read := search(t, made(t, 1<<40, map[int64]string{1 << 39: uuid}), []byte(uuid)); read.Data > mega {
			t.Errorf("of a file with one block, %d bytes were read", read.Data)
		}
	})
}

func TestSearchFindsAllThatASlowOneDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		// Of few letters, so that much almost matches.
		letters := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\x00")), 8, 24)
		all := rapid.SliceOfNDistinct(letters, 1, 6, func(b []byte) string { return string(b) }).Draw(rt, "patterns")
		text := bytes.Join(rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom(all), letters), 0, 40).Draw(rt, "text"), nil)
		var want []disk.Hit
		for i, p := range all {
			for at := range text {
				if bytes.HasPrefix(text[at:], p) {
					want = append(want, disk.Hit{Pattern: i, At: int64(at)})
				}
			}
		}
		hits, _ := search(t, made(t, int64(len(text)), map[int64]string{0: string(text)}), all...)
		order := func(a, b disk.Hit) int { return int(a.At-b.At)*100 + a.Pattern - b.Pattern }
		slices.SortFunc(hits, order)
		slices.SortFunc(want, order)
		if diff := cmp.Diff(want, hits); diff != "" {
			rt.Errorf("found (-want +got):\n%s", diff)
		}
	})
}

func TestASearchThatIsCancelledEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := disk.NewPatterns([][]byte{[]byte(uuid)})
	if err != nil {
		t.Fatal(err)
	}
	f := made(t, 32<<20, map[int64]string{0: strings.Repeat("x", 32<<20)})
	read, err := disk.Search(ctx, f, p, func(disk.Hit) {}, func(disk.Read) { cancel() })
	if err == nil || read.At >= read.Of {
		t.Errorf("it read %d of %d bytes, %v", read.At, read.Of, err)
	}
}

func TestWhatCannotBeSearchedForIsRefused(t *testing.T) {
	for name, all := range map[string][][]byte{"nothing": nil, "a short one": {[]byte(uuid), []byte("1234567")}} {
		if _, err := disk.NewPatterns(all); err == nil {
			t.Errorf("%s is searched for", name)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct{ name, content, want, says string }{
		{"a disk", strings.Repeat("\x00", 4096), "raw", ""},
		{"an empty file", "", "", "read"},
		{"a short one", "x", "raw", ""},
		{"qcow2", "QFI\xfb\x00\x00\x00\x03", "qcow2", ""},
		{"VMware's", "KDMV", "vmdk", ""},
		{"what gzip packed", "\x1f\x8b\x08", "", "unpack it first"},
		{"what zstd packed", "\x28\xb5\x2f\xfd", "", "unpack it first"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(name, []byte(c.content), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := disk.Format(name)
			if got != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	if _, err := disk.Format(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a folder") {
		t.Errorf("a folder: %v", err)
	}
}

func TestRawOfACompressedImage(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("needs qemu-img")
	}
	t.Setenv("TMPDIR", t.TempDir())
	source := made(t, 64<<20, map[int64]string{33<<20 + 7: uuid})
	image := filepath.Join(t.TempDir(), "image.qcow2")
	if out, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", source.Name(), image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := disk.Raw(t.Context(), image, "qcow2")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	hits, _ := search(t, f, []byte(uuid))
	if diff := cmp.Diff([]disk.Hit{{Pattern: 0, At: 33<<20 + 7}}, hits); diff != "" {
		t.Error(diff)
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("left in the temporary folder: %v", left)
	}
	if err := os.WriteFile(image, []byte("QFI\xfb and no more"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Raw(t.Context(), image, "qcow2"); err == nil || !strings.Contains(err.Error(), "qemu-img") {
		t.Errorf("a damaged image: %v", err)
	}
}

// BenchmarkSearch is the search of a disk for what a seal takes out: some two hundred
// forms of it.
func BenchmarkSearch(b *testing.B) {
	const size = 1 << 30
	f, err := os.Create(filepath.Join(b.TempDir(), "disk"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	for at := 0; at < size; at += len(program) {
		if _, err := f.Write(program); err != nil {
			b.Fatal(err)
		}
	}
	var all [][]byte
	for i := range 200 {
		sum := bytes.Repeat([]byte{byte(i), 17, byte(i * 31), 3, byte(i * 7)}, 4)
		all = append(all, sum[:16+i%4])
	}
	p, err := disk.NewPatterns(all)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if _, err := disk.Search(b.Context(), f, p, func(disk.Hit) {}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
