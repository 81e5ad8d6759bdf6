package diskimage_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/diskimage"
)

func TestFormatOf(t *testing.T) {
	zeros := strings.Repeat("\x00", 510)
	for _, tc := range []struct {
		name, content string
		want          diskimage.Format
	}{
		{"a qcow2 image", "QFI\xfb" + zeros, diskimage.QCOW2},
		{"a disk with a boot sector", zeros + "\x55\xaa" + zeros, diskimage.Raw},
		{"a qcow2 image whose header ends like a boot sector", "QFI\xfb" + zeros[4:] + "\x55\xaa", diskimage.QCOW2},
		{"a file system without a partition table", zeros + zeros, diskimage.Unknown},
		{"the magic bytes alone", "QFI\xfb", diskimage.Unknown},
		{"an empty file", "", diskimage.Unknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(file, []byte(tc.content), 0o644); err != nil {
				t.Fatal(err)
			}
			if got, err := diskimage.FormatOf(file); err != nil || got != tc.want {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestFormatOfNamesTheFileThatItCannotRead(t *testing.T) {
	for _, name := range []string{t.TempDir(), "/no/such/image"} {
		if _, err := diskimage.FormatOf(name); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
