package nspawn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/diskimage"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepDisk makes the raw disk that the machine will run on: a copy of the
// source image, or an empty disk for a root tar.
//
// Uses: stateSandbox. Produces: statePartition, the file at Config.workPath.
type stepDisk struct{ config *Config }

func (s *stepDisk) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	d := &disk{sandbox: sandboxOf(state), path: s.config.workPath()}
	var root *partition
	var err error
	if isTar(s.config.SourceImage) {
		uiOf(state).Say(fmt.Sprintf("Making an empty disk of %d MiB", s.config.diskSize>>20))
		root, err = d.format(ctx, s.config.diskSize)
	} else {
		uiOf(state).Say("Copying " + s.config.SourceImage)
		root, err = d.copy(ctx, s.config.SourceImage, s.config.diskSize)
	}
	if err != nil {
		return halt(state, err)
	}
	state.Put(statePartition, root)
	return multistep.ActionContinue
}

func (s *stepDisk) Cleanup(multistep.StateBag) {
	if s.config.Format != FormatRaw {
		os.Remove(s.config.workPath())
	}
}

// disk is a raw disk in a file.
type disk struct {
	sandbox *machine.Sandbox
	path    string
}

const (
	// mbrFile is the code that finds the active partition and starts it.
	mbrFile = "/usr/lib/syslinux/mbr/mbr.bin"
	// mbrCode is the room for it before the partition table.
	mbrCode = 440
	// firstPartition is where everybody puts it: 1 MiB.
	firstPartition = 1 << 20
	// rootLabel is how the kernel and fstab find the root.
	rootLabel = "root"
)

// format makes a disk with one active partition and an empty ext4 on it.
func (d *disk) format(ctx context.Context, size int64) (*partition, error) {
	f, err := os.OpenFile(d.path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the disk: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, fmt.Errorf("make the disk: %w", err)
	}
	if err := d.sfdisk(ctx, fmt.Sprintf("label: dos\nstart=%d, type=83, bootable\n", firstPartition/sector)); err != nil {
		return nil, err
	}
	code, err := os.ReadFile(mbrFile)
	if err != nil {
		return nil, fmt.Errorf("read the boot code: %w", err)
	}
	if len(code) > mbrCode {
		return nil, fmt.Errorf("%s has %d bytes, but there is room for %d", mbrFile, len(code), mbrCode)
	}
	if _, err := f.WriteAt(code, 0); err != nil {
		return nil, fmt.Errorf("write the boot code: %w", err)
	}
	p := &partition{number: 1, start: firstPartition, size: size - firstPartition}
	// extlinux reads neither 64-bit block numbers nor checksummed metadata. Old
	// kernels (XiVO 15 and 16 are Debian 7 and 8) know no orphan file either,
	// and mkfs makes none unless asked.
	err = d.sandbox.Run(ctx, "mkfs.ext4", "-q", "-F", "-L", rootLabel, "-O", "^64bit,^metadata_csum",
		"-E", "offset="+strconv.FormatInt(p.start, 10), d.path, fmt.Sprintf("%dk", p.size>>10))
	return p, err
}

// copy writes a disk image as raw, grows it to size when that is more, its last
// partition included, and finds its root partition. Size 0 is the source's own.
func (d *disk) copy(ctx context.Context, source string, size int64) (*partition, error) {
	grown, err := d.convert(ctx, source, size)
	if err != nil {
		return nil, err
	}
	parts, err := d.partitions(ctx)
	if err != nil {
		return nil, err
	}
	root, err := d.findRoot(ctx, parts)
	if err != nil || !grown {
		return root, err
	}
	if root, err = d.growPartition(ctx, root, parts[len(parts)-1], size); err != nil {
		return nil, err
	}
	return root, d.growFileSystem(ctx, root, size)
}

// convert writes a disk image as raw, and says whether the file had to grow to
// have the size.
func (d *disk) convert(ctx context.Context, source string, size int64) (grown bool, err error) {
	format, err := diskimage.FormatOf(source)
	if err != nil {
		return false, fmt.Errorf("read the source image: %w", err)
	}
	if format == diskimage.Unknown {
		format = diskimage.Raw // a file system, perhaps, without a partition table
	}
	if err := makePrivate(d.path); err != nil {
		return false, err
	}
	if err := d.sandbox.Run(ctx, "qemu-img", "convert", "-f", string(format), "-O", "raw", source, d.path); err != nil {
		return false, err
	}
	st, err := os.Stat(d.path)
	if err != nil {
		return false, err
	}
	switch {
	case size > st.Size():
		if err := os.Truncate(d.path, size); err != nil {
			return false, fmt.Errorf("grow the disk: %w", err)
		}
		return true, nil
	case size != 0 && size < st.Size():
		return false, fmt.Errorf("disk_size is %d bytes, but the source image has %d: it can be grown, not shrunk", size, st.Size())
	}
	return false, nil
}

// makePrivate makes an empty file, or empties one, that only its owner may access:
// whoever writes a disk into it keeps that.
func makePrivate(name string) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// growPartition gives the root's partition the rest of the disk.
func (d *disk) growPartition(ctx context.Context, root, last *partition, size int64) (*partition, error) {
	if root.whole() {
		return &partition{size: size}, nil
	}
	if last.number != root.number {
		return nil, fmt.Errorf("grow the disk: partition %d, the last, is not the root (partition %d): leave disk_size out", last.number, root.number)
	}
	// With a GPT, this moves its copy to the new end of the disk as well.
	if err := d.sfdisk(ctx, ",+\n", "-N", strconv.Itoa(root.number)); err != nil {
		return nil, err
	}
	parts, err := d.partitions(ctx)
	if err != nil {
		return nil, err
	}
	grown := parts[len(parts)-1]
	if grown.size-root.size < root.start {
		return nil, fmt.Errorf("disk_size must be at least %d MiB more than the source image has, or left out", root.start>>20+1)
	}
	return grown, nil
}

// growFileSystem makes an ext2, ext3 or ext4 as large as its partition. It is
// done in the file: a mounted one may be grown by few.
func (d *disk) growFileSystem(ctx context.Context, p *partition, size int64) error {
	place := fmt.Sprintf("%s?offset=%d", d.path, p.start)
	err := d.sandbox.Run(ctx, "e2fsck", "-f", "-p", place)
	// 1: errors were corrected.
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
		err = nil
	}
	if err == nil {
		err = d.sandbox.Run(ctx, "resize2fs", place, fmt.Sprintf("%dk", p.size>>10))
	}
	if err == nil {
		// resize2fs cuts the file to the size of the file system alone before it
		// starts, which is why it must grow by more than the offset.
		err = os.Truncate(d.path, size)
	}
	if err != nil {
		return fmt.Errorf("grow the root's file system (leave disk_size out where it is not an ext4): %w", err)
	}
	return nil
}

// findRoot mounts the partitions, the largest first, until one has a Debian.
func (d *disk) findRoot(ctx context.Context, parts []*partition) (*partition, error) {
	var why []string
	for _, p := range bySize(parts) {
		if kind := d.signature(ctx, p); slices.Contains([]string{"LVM2_member", "crypto_LUKS", "linux_raid_member"}, kind) {
			why = append(why, fmt.Sprintf("%s is a %s, which this builder does not open: use Packer's qemu builder for such a machine", p, kind))
			continue
		}
		// Not read-only: the journal of a disk that was not shut down cleanly has to
		// be replayed.
		if err := mount(ctx, d.sandbox, d.path, p, "rw"); err != nil {
			why = append(why, fmt.Sprintf("%s: %v", p, err))
			continue
		}
		_, err := os.Stat(d.sandbox.Path(rootDir, "etc/debian_version"))
		if err := d.sandbox.Run(ctx, "umount", rootDir); err != nil {
			return nil, err
		}
		if err == nil {
			return p, nil
		}
		why = append(why, fmt.Sprintf("%s has no /etc/debian_version", p))
	}
	return nil, fmt.Errorf("no Debian root is in the source image: %s", strings.Join(why, "; "))
}

// signature is what blkid calls the content of a partition; "" when it has no
// name for it.
func (d *disk) signature(ctx context.Context, p *partition) string {
	out, _ := d.sandbox.Command(ctx, "blkid", "--probe", "--offset", strconv.FormatInt(p.start, 10),
		"--size", strconv.FormatInt(p.size, 10), "--match-tag", "TYPE", "--output", "value", d.path).Output()
	return strings.TrimSpace(string(out))
}

// partitions reads the partition table; a disk without one is one partition.
func (d *disk) partitions(ctx context.Context) ([]*partition, error) {
	cmd := d.sandbox.Command(ctx, "sfdisk", "-J", d.path)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err == nil {
		return parsePartitions(out)
	}
	if !strings.Contains(said.String(), "does not contain a recognized partition table") {
		return nil, fmt.Errorf("read the partition table of the source image: %w: %s", err, strings.TrimSpace(said.String()))
	}
	st, err := os.Stat(d.path)
	if err != nil {
		return nil, err
	}
	return []*partition{{size: st.Size()}}, nil
}

// sfdisk changes the partition table as a script says.
func (d *disk) sfdisk(ctx context.Context, script string, args ...string) error {
	cmd := d.sandbox.Command(ctx, append(append([]string{"sfdisk", "--quiet", "--no-reread", "--no-tell-kernel"}, args...), d.path)...)
	cmd.Stdin = strings.NewReader(script)
	return run(cmd, "write the partition table")
}

// mount shows a partition at rootDir. The loop device goes with the mount.
func mount(ctx context.Context, sandbox *machine.Sandbox, path string, p *partition, options string) error {
	if err := os.MkdirAll(sandbox.Path(rootDir), 0o755); err != nil {
		return err
	}
	options += fmt.Sprintf(",loop,offset=%d,sizelimit=%d", p.start, p.size)
	return sandbox.Run(ctx, "mount", "-o", options, path, rootDir)
}
