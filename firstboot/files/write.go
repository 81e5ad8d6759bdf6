package files

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Attr is who owns a file, and who may do what with it.
type Attr struct {
	// Mode is its permissions; other bits are not set.
	Mode     fs.FileMode
	UID, GID int
}

// Private is what a file of our own state has: nobody but the user of this
// process may read or write it.
func Private() Attr { return Attr{0o600, os.Geteuid(), os.Getegid()} }

// Kept is the owner and the mode that a file has; for a missing one, mode and the
// owner of its folder. What is there and no regular file is an error.
func Kept(name string, mode fs.FileMode) (Attr, error) {
	dir, err := openFolder(filepath.Dir(name))
	if err != nil {
		return Attr{}, err
	}
	defer dir.Close()
	st, err := dir.stat(filepath.Base(name))
	switch {
	case err == nil:
		return Attr{permissions(st), int(st.Uid), int(st.Gid)}, dir.refuse(name, st)
	case !errors.Is(err, fs.ErrNotExist):
		return Attr{}, failed("stat", name, err)
	}
	if err := unix.Fstat(dir.fd(), &st); err != nil {
		return Attr{}, failed("stat", filepath.Dir(name), err)
	}
	return Attr{mode, int(st.Uid), int(st.Gid)}, nil
}

// ReadFile returns the content of a regular file, and refuses all else: a link is
// not followed, and a FIFO not waited for. That there is no such file is
// fs.ErrNotExist.
func ReadFile(name string) ([]byte, error) {
	content, _, err := read(name, limit.File)
	return content, err
}

// read is ReadFile of so many bytes at most, and what the file has for owner and mode.
func read(name string, most int64) ([]byte, Attr, error) {
	dir, err := openFolder(filepath.Dir(name))
	if err != nil {
		return nil, Attr{}, err
	}
	defer dir.Close()
	f, st, err := dir.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, Attr{}, err
	}
	defer f.Close()
	content, err := limit.Read(f, most)
	if err != nil {
		return nil, Attr{}, failed("read", name, err)
	}
	return content, Attr{permissions(st), int(st.Uid), int(st.Gid)}, nil
}

// WriteFile replaces a file, or makes it, at once or not at all: the content is
// written beside it with its owner and mode, is on the disk, and then takes the
// name. Where there is anything but a regular file under that name, it is an
// error and nothing is changed. The name beside starts with a dot and has no
// ending that a conf.d reads. What a try that was cut off left under such a name,
// which may hold secrets, is taken away.
func WriteFile(name string, data []byte, a Attr) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	dir, err := openFolder(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	if st, err := dir.stat(filepath.Base(name)); err == nil {
		if err := dir.refuse(name, st); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	prefix := besidePrefix(name)
	if err := dir.removeAbandoned(prefix); err != nil {
		return err
	}
	beside := prefix + rand.Text()
	fd, err := unix.Openat(dir.fd(), beside, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), beside)
	defer f.Close()
	if err := fill(f, data, a); err != nil {
		return errors.Join(err, unix.Unlinkat(dir.fd(), beside, 0))
	}
	if err := unix.Renameat(dir.fd(), beside, dir.fd(), filepath.Base(name)); err != nil {
		unix.Unlinkat(dir.fd(), beside, 0)
		return err
	}
	return dir.Sync()
}

// fill gives an open file all that it should have, and brings it to the disk. The
// file stays locked until it is closed; see removeAbandoned.
func fill(f *os.File, data []byte, a Attr) error {
	fd := int(f.Fd())
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := unix.Fchown(fd, a.UID, a.GID); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(a.Mode.Perm())); err != nil {
		return err
	}
	return f.Sync()
}

// besidePrefix begins the names under which a file is written before it gets its
// own.
func besidePrefix(name string) string { return "." + filepath.Base(name) + ".xivo-firstboot-" }

// removeAbandoned removes the regular files whose names begin like that, but those
// that another process is writing: it has them locked, and the kernel unlocks
// those of a dead one. Nothing else of such a name is ours.
func (f *folder) removeAbandoned(prefix string) error {
	// A folder of its own, as its position in the list is.
	list, err := f.folder(".")
	if err != nil {
		return err
	}
	defer list.Close()
	names, err := list.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		file, _, err := f.open(name, unix.O_RDONLY)
		if err != nil {
			continue // not ours, or renamed meanwhile
		}
		if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			err = unix.Unlinkat(f.fd(), name, 0)
		}
		file.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("remove", filepath.Join(f.Name(), name), err)
		}
	}
	return nil
}

// CopyTree copies a folder with its folders and regular files into a new one, for
// the user of this process alone. It follows no link: one of them, or anything
// else, is an error.
func CopyTree(from, to string) error {
	dir, err := openFolder(from)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.copyTo(from, to)
}

// copyTo copies what is in the folder, which has that path.
func (f *folder) copyTo(path, to string) error {
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		from, to := filepath.Join(path, name), filepath.Join(to, name)
		st, err := f.stat(name)
		if err != nil {
			return failed("copy", from, err)
		}
		if kind(st) == fs.ModeDir {
			err = f.copyFolder(from, to)
		} else {
			err = f.copyFile(from, to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *folder) copyFolder(from, to string) error {
	inner, err := f.folder(filepath.Base(from))
	if err != nil {
		return failed("copy", from, err)
	}
	defer inner.Close()
	return inner.copyTo(from, to)
}

func (f *folder) copyFile(from, to string) error {
	source, _, err := f.open(from, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(target, source)
	return errors.Join(err, target.Close())
}
