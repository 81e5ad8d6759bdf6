// Package files has files, links and their absence as resources, and the one way
// in which a file is written.
//
// All of it is safe in a folder that a daemon's user owns, and who therefore may
// put a link, a FIFO or another file in the place of any name at any time. Names
// are looked up in a folder that is held open, what is no regular file is
// refused, and owner and mode are set on what is open, never by name.
package files

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// folder is a folder that is held open: what happens to its name changes nothing
// of where the files are looked up.
type folder struct {
	*os.File
	owner uint32
}

const openFolderFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// maxLinks is how many links a path may lead through, as in the kernel.
const maxLinks = 40

// openFolder opens a folder by its path. Links of root, or of who runs this, are
// followed: an administrator may have moved /var/log to another disk. A link that
// another user made, or may have exchanged, may lead to a folder of that user only.
func openFolder(name string) (*folder, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	at, err := openRoot(name)
	if err != nil {
		return nil, err
	}
	// Those who decided where the path leads, besides root and us.
	var deciders []uint32
	links := 0
	for rest := parts(abs); len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		st, err := at.stat(part)
		if err != nil {
			at.Close()
			return nil, failed("open", name, err)
		}
		var next *folder
		if kind(st) != fs.ModeSymlink {
			next, err = at.folder(part)
		} else {
			for _, uid := range []uint32{at.owner, st.Uid} {
				if !trusted(uid) {
					deciders = append(deciders, uid)
				}
			}
			var target string
			target, err = at.readlink(part)
			if links++; links > maxLinks {
				err = unix.ELOOP
			}
			rest = append(parts(target), rest...)
			if err == nil && filepath.IsAbs(target) {
				next, err = openRoot(name)
			}
		}
		if err != nil {
			at.Close()
			return nil, failed("open", name, err)
		}
		if next != nil {
			at.Close()
			at = next
		}
	}
	for _, uid := range deciders {
		if uid != at.owner {
			at.Close()
			return nil, fmt.Errorf("%s: a link of user %d on the way leads to a folder of user %d: nothing was done there; remove the link and run again", name, uid, at.owner)
		}
	}
	return at, nil
}

func openRoot(name string) (*folder, error) {
	fd, err := unix.Open("/", openFolderFlags, 0)
	if err != nil {
		return nil, failed("open", name, err)
	}
	return newFolder(fd, "/")
}

func newFolder(fd int, name string) (*folder, error) {
	f := &folder{File: os.NewFile(uintptr(fd), name)}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, failed("stat", name, err)
	}
	f.owner = st.Uid
	return f, nil
}

// trusted are those who need no trick of ours to change a file of root's.
func trusted(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// parts are the names that a path consists of. ".." is one: what it means is
// known in the folder only.
func parts(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(p string) bool { return p == "" || p == "." })
}

func (f *folder) fd() int { return int(f.Fd()) }

// folder opens a folder in this one, and follows no link.
func (f *folder) folder(name string) (*folder, error) {
	fd, err := unix.Openat(f.fd(), name, openFolderFlags, 0)
	if err != nil {
		return nil, err
	}
	return newFolder(fd, filepath.Join(f.Name(), name))
}

// stat tells of a name itself, not of what a link leads to.
func (f *folder) stat(name string) (st unix.Stat_t, err error) {
	err = unix.Fstatat(f.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return st, err
}

func (f *folder) readlink(name string) (string, error) {
	for size := 256; ; size *= 2 {
		target := make([]byte, size)
		n, err := unix.Readlinkat(f.fd(), name, target)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(target[:n]), nil
		}
	}
}

// open opens a regular file in the folder, and refuses all else. It never waits
// for somebody at the other end.
func (f *folder) open(path string, flags int) (*os.File, unix.Stat_t, error) {
	name := filepath.Base(path)
	// First, as opening a device can be an order to it.
	st, err := f.stat(name)
	if err != nil {
		return nil, st, failed("open", path, err)
	}
	if err := f.refuse(path, st); err != nil {
		return nil, st, err
	}
	fd, err := unix.Openat(f.fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, st, failed("open", path, err)
	}
	file := os.NewFile(uintptr(fd), path)
	// Again, as another may have taken its place meanwhile.
	if err = unix.Fstat(fd, &st); err != nil {
		err = failed("stat", path, err)
	} else {
		err = f.refuse(path, st)
	}
	if err != nil {
		file.Close()
		return nil, st, err
	}
	return file, st, nil
}

// refuse is an error for what is no regular file.
func (f *folder) refuse(path string, st unix.Stat_t) error {
	is := "something unknown"
	switch kind(st) {
	case 0:
		return nil
	case fs.ModeSymlink:
		is = "a symbolic link"
		if target, err := f.readlink(filepath.Base(path)); err == nil {
			is += fmt.Sprintf(" to %q", target)
		}
	case fs.ModeDir:
		is = "a folder"
	case fs.ModeNamedPipe:
		is = "a FIFO"
	case fs.ModeSocket:
		is = "a socket"
	case fs.ModeDevice:
		is = "a device"
	}
	return fmt.Errorf("%s is %s of user %d, not a regular file, so it is neither read nor replaced: see who made it, move it away, and run again", path, is, st.Uid)
}

// kind is the type of a file; 0 for a regular one.
func kind(st unix.Stat_t) fs.FileMode {
	switch uint32(st.Mode) & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	case unix.S_IFBLK, unix.S_IFCHR:
		return fs.ModeDevice
	}
	return fs.ModeIrregular
}

// permissions are a file's, without the bits of setuid and its like.
func permissions(st unix.Stat_t) fs.FileMode { return fs.FileMode(uint32(st.Mode)).Perm() }

// removeAll removes a name from the folder, with all that is in it if it is a
// folder itself. A link goes, and not what it leads to.
func (f *folder) removeAll(name string) error {
	path := filepath.Join(f.Name(), name)
	err := unix.Unlinkat(f.fd(), name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	// Linux says EISDIR of a folder, others EPERM.
	if st, statErr := f.stat(name); statErr != nil || kind(st) != fs.ModeDir {
		return failed("remove", path, err)
	}
	inner, err := f.folder(name)
	if err != nil {
		return failed("remove", path, err)
	}
	defer inner.Close()
	names, err := inner.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := inner.removeAll(n); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(f.fd(), name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return failed("remove", path, err)
	}
	return nil
}

// failed names the path in an error of the kernel.
func failed(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
