package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// Formats of images, by how they begin. What begins like none of them is raw.
var (
	formats = []struct{ name, magic string }{
		{"qcow2", "QFI\xfb"},
		{"vmdk", "KDMV"},
		{"vmdk", "# Disk DescriptorFile"},
		{"vhdx", "vhdxfile"},
		{"vpc", "conectix"},
	}
	packed = []struct{ name, magic string }{
		{"gzip", "\x1f\x8b"},
		{"xz", "\xfd7zXZ\x00"},
		{"bzip2", "BZh"},
		{"zstd", "\x28\xb5\x2f\xfd"},
		{"zip", "PK\x03\x04"},
	}
)

// Format is the format of a disk image: raw for a device, and for all that is not
// known. What is packed as a whole is an error: nothing could be found in it.
func Format(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.IsDir() {
		return "", errors.Join(err, fmt.Errorf("%s is a folder, not a disk", name))
	}
	head := make([]byte, 512)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	for _, p := range packed {
		if bytes.HasPrefix(head[:n], []byte(p.magic)) {
			return "", fmt.Errorf("%s is packed (%s): unpack it first", name, p.name)
		}
	}
	for _, f := range formats {
		if bytes.HasPrefix(head[:n], []byte(f.magic)) {
			return f.name, nil
		}
	}
	return "raw", nil
}

// Raw opens the disk that an image holds. One of another format than raw is written
// as raw, by qemu-img, into a sparse file of the temporary folder that nobody else
// may read; the file has no name any more when Raw returns, and is gone when it is
// closed.
func Raw(ctx context.Context, name, format string) (f *os.File, err error) {
	if format == "raw" {
		return os.Open(name)
	}
	dir, err := os.MkdirTemp("", "xivo-disk-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	raw := filepath.Join(dir, "raw")
	cmd := exec.CommandContext(ctx, "qemu-img", "convert", "-f", format, "-O", "raw", name, raw)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("read the %s %s with qemu-img (Debian's package qemu-utils): %w: %s", format, name, err, bytes.TrimSpace(out))
	}
	return os.Open(raw)
}
