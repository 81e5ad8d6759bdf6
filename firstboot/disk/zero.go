package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// syncEvery is how much is written before it must be on the disk: more would take
// the memory of all else.
const syncEvery = 256 << 20

// ZeroFree writes zeros over all that is free of the file system, what is kept back
// for root and for the file system itself included. The file system is full
// meanwhile: nothing that has to write may run. When ZeroFree returns, however it
// ends, the space is free again. Progress gets how many bytes were written so far,
// and may be nil.
func (f FileSystem) ZeroFree(ctx context.Context, progress func(int64)) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk: write zeros over the free space of %s: %w", f.Mount, err)
		}
	}()
	restore, err := f.giveReserved()
	if err != nil {
		return err
	}
	var files []*os.File
	defer func() {
		for _, file := range files {
			err = errors.Join(err, file.Close())
		}
		err = errors.Join(err, restore(), syncFileSystem(f.Mount))
	}()
	// What was freed last can be taken when that is on the disk.
	if err := syncFileSystem(f.Mount); err != nil {
		return err
	}
	var written int64
	for {
		file, err := nameless(f.Mount)
		if errors.Is(err, unix.ENOSPC) {
			return nil
		}
		if err != nil {
			return err
		}
		files = append(files, file)
		n, full, err := fill(ctx, file, func(n int64) {
			if progress != nil {
				progress(written + n)
			}
		})
		written += n
		if err != nil || full {
			return err
		}
	}
}

// fill writes zeros to a file until the file system is full, or the file as large as
// it may be.
func fill(ctx context.Context, f *os.File, progress func(int64)) (written int64, full bool, err error) {
	zeros := make([]byte, 4<<20)
	unsynced, sinceSync := 0, int64(-1)
	for size := len(zeros); ; {
		if err := ctx.Err(); err != nil {
			return written, false, err
		}
		n, err := f.Write(zeros[:size])
		written += int64(n)
		switch {
		case errors.Is(err, unix.ENOSPC) && size > 512:
			size /= 2 // what is left is less
		case errors.Is(err, unix.ENOSPC):
			if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
				return written, false, err
			}
			if written == sinceSync {
				return written, true, nil
			}
			// What ext4 kept back for where the zeros go is free now, if it was too much.
			sinceSync, size = written, 64<<10
		case errors.Is(err, unix.EFBIG):
			return written, false, f.Sync()
		case err != nil:
			return written, false, err
		}
		if unsynced += n; unsynced >= syncEvery {
			unsynced = 0
			if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
				return written, false, err
			}
			progress(written)
		}
	}
}

// nameless is a new file without a name: it is gone when it is closed, whatever
// becomes of this process.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".xivo-firstboot-zeros-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func syncFileSystem(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// giveReserved lets files take what ext4 keeps back for itself, up to 16 MiB, of
// which no file would get a block.
func (f FileSystem) giveReserved() (restore func() error, err error) {
	none := func() error { return nil }
	if f.Type != "ext3" && f.Type != "ext4" {
		return none, nil
	}
	name, err := f.name()
	if err != nil {
		return none, err
	}
	setting := filepath.Join("/sys/fs/ext4", name, "reserved_clusters")
	was, err := os.ReadFile(setting)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	return func() error { return os.WriteFile(setting, was, 0) }, os.WriteFile(setting, []byte("0\n"), 0)
}

// foldersAtOnce is how many folders are made to write over a journal.
const foldersAtOnce = 4000

// journalInfo is what the kernel tells of a journal: a transaction has a quarter of
// its blocks at most.
var journalInfo = regexp.MustCompile(`each up to (\d+) blocks`)

// JournalSize is how many bytes the journal of an ext3 or ext4 may have; 0 where there
// is none, or none in the file system itself.
func (f FileSystem) JournalSize() (int64, error) {
	if f.Type != "ext3" && f.Type != "ext4" {
		return 0, nil
	}
	name, err := f.name()
	if err != nil {
		return 0, err
	}
	const journalInode = "8"
	raw, err := os.ReadFile(filepath.Join("/proc/fs/jbd2", name+"-"+journalInode, "info"))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("disk: the journal of %s: %w", f.Mount, err)
	}
	found := journalInfo.FindSubmatch(raw)
	if found == nil {
		return 0, fmt.Errorf("disk: the journal of %s: the kernel does not tell its size: %q", f.Mount, bytes.TrimSpace(raw))
	}
	blocks, err := strconv.ParseInt(string(found[1]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("disk: the journal of %s: %w", f.Mount, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.Mount, &st); err != nil {
		return 0, fmt.Errorf("disk: the journal of %s: %w", f.Mount, err)
	}
	return 4 * blocks * int64(st.Bsize), nil
}

// OverwriteJournal writes over the journal of an ext3 or ext4, which holds blocks of
// folders as they were: folders are made, brought to the disk and removed until the
// kernel has come around. There is no other way into it while the file system is
// mounted that every kernel has, and that needs no more than root's files.
func (f FileSystem) OverwriteJournal(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk: write over the journal of %s: %w", f.Mount, err)
		}
	}()
	size, err := f.JournalSize()
	if size == 0 || err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(f.Mount, &st); err != nil {
		return err
	}
	folders := min(foldersAtOnce, int64(st.Ffree)/2, int64(st.Bavail)/2)
	if folders < 16 {
		return errors.New("it has no room for the folders that it takes")
	}
	dir, err := os.MkdirTemp(f.Mount, ".xivo-firstboot-journal-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// The block of each folder goes through the journal, and others with it. A quarter
	// more: the kernel may have told of less than there is.
	for written := int64(0); written < size+size/4; written += folders * int64(st.Bsize) {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, change := range []func(name string) error{func(name string) error { return os.Mkdir(name, 0o700) }, os.Remove} {
			for i := range folders {
				if err := change(filepath.Join(dir, strconv.FormatInt(i, 10))); err != nil {
					return err
				}
			}
			if err := syncFileSystem(f.Mount); err != nil {
				return err
			}
		}
	}
	return nil
}

// swapHeader is what names a swap area, and stays.
const swapHeader = 4096

// ZeroSwap writes zeros over a swap area that is not in use. It stays one, with its
// name.
func ZeroSwap(ctx context.Context, name string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("disk: write zeros over the swap area %s: %w", name, err)
		}
	}()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, swapHeader)
	if _, err := f.ReadAt(head, 0); err != nil {
		return err
	}
	if !bytes.HasSuffix(head, []byte("SWAPSPACE2")) {
		return errors.New("it is none, or one of another page size")
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return err
	}
	zeros := make([]byte, 4<<20)
	for at := int64(swapHeader); at < size; at += int64(len(zeros)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// Swaps are the swap areas in use that are on a disk.
func Swaps() ([]string, error) {
	raw, err := os.ReadFile("/proc/swaps")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return swaps(string(raw)), nil
}

// swaps reads the kernel's list, without those in memory.
func swaps(list string) []string {
	var names []string
	for i, line := range strings.Split(list, "\n") {
		fields := strings.Fields(line)
		if i > 0 && len(fields) > 0 && !strings.HasPrefix(fields[0], "/dev/zram") {
			names = append(names, unescaped(fields[0]))
		}
	}
	return names
}
