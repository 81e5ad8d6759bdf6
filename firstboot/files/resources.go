package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// server is a server's file system, below a folder that is "/" on a real one. All
// paths of resources are the server's.
type server string

// path is where a path of the server is here.
func (s server) path(name string) string { return filepath.Join(string(s), name) }

// told is the path of the server that a person is told.
func (s server) told(name string) string {
	rel, err := filepath.Rel(string(s), name)
	if err != nil {
		return name
	}
	return filepath.Join("/", rel)
}

// Present is a file with this content and mode. One that is there keeps its
// owner; a new one gets that of its folder, which is made where it is missing.
func Present(root, path string, content []byte, mode fs.FileMode) engine.Resource {
	name := server(root).path(path)
	diff := func(context.Context) ([]string, error) {
		have, attr, err := read(name, int64(len(content)))
		switch {
		case errors.Is(err, limit.ErrTooLong):
			return []string{path + " differs"}, nil
		case errors.Is(err, fs.ErrNotExist):
			return []string{path + " is missing"}, nil
		case err != nil:
			return nil, err
		case string(have) != string(content) || attr.Mode != mode:
			return []string{path + " differs"}, nil
		}
		return nil, nil
	}
	apply := func(context.Context) error {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		attr, err := Kept(name, mode)
		if err != nil {
			return err
		}
		attr.Mode = mode
		return WriteFile(name, content, attr)
	}
	return engine.New(diff, apply)
}

// Link is a symbolic link that leads to the target. Its folder is made where it is
// missing. What is no link is not replaced by one.
func Link(root, path, target string) engine.Resource {
	name := server(root).path(path)
	inTheWay := fmt.Errorf("%s is in the place of a link to %s: move it away and run again", path, target)
	diff := func(context.Context) ([]string, error) {
		switch have, err := os.Readlink(name); {
		case errors.Is(err, unix.EINVAL):
			return nil, inTheWay
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case have == target:
			return nil, nil
		}
		return []string{path + " does not lead to " + target}, nil
	}
	apply := func(context.Context) error {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		dir, err := openFolder(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer dir.Close()
		if st, err := dir.stat(filepath.Base(name)); err == nil && kind(st) != fs.ModeSymlink {
			return inTheWay
		}
		if err := unix.Unlinkat(dir.fd(), filepath.Base(name), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("remove", name, err)
		}
		return failed("link", name, unix.Symlinkat(target, dir.fd(), filepath.Base(name)))
	}
	return engine.New(diff, apply)
}

// Absent is that no file matches one of the patterns, which are those of
// filepath.Match. A folder that matches goes with what is in it, a link goes and
// not what it leads to.
func Absent(root string, patterns ...string) engine.Resource {
	return AbsentBut(root, nil, patterns...)
}

// AbsentBut is Absent for all but the files that stay, which may match.
func AbsentBut(root string, stay []string, patterns ...string) engine.Resource {
	s := server(root)
	find := func() ([]string, error) {
		found, err := s.find(patterns)
		var goes []string
		for _, name := range found {
			if !slices.Contains(stay, name) {
				goes = append(goes, name)
			}
		}
		return goes, err
	}
	diff := func(context.Context) ([]string, error) { return find() }
	apply := func(context.Context) error {
		found, err := find()
		for _, name := range found {
			err = errors.Join(err, remove(s.path(name)))
		}
		return err
	}
	return engine.New(diff, apply)
}

// find returns what matches, each path of the server once, in order; nil for
// nothing.
func (s server) find(patterns []string) ([]string, error) {
	var found []string
	for _, pattern := range patterns {
		matches, err := filepath.Glob(s.path(pattern))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		for _, name := range matches {
			found = append(found, s.told(name))
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

func remove(name string) error {
	dir, err := openFolder(filepath.Dir(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.removeAll(filepath.Base(name))
}

// Empty is that all regular files that match one of the patterns are empty: they
// stay, with their owners and modes, for who wants to write on.
func Empty(root string, patterns ...string) engine.Resource {
	s := server(root)
	full := func() ([]string, error) {
		found, err := s.find(patterns)
		var full []string
		for _, name := range found {
			st, statErr := os.Lstat(s.path(name))
			if statErr != nil {
				err = errors.Join(err, statErr)
			} else if st.Mode().IsRegular() && st.Size() > 0 {
				full = append(full, name)
			}
		}
		return full, err
	}
	diff := func(context.Context) ([]string, error) { return full() }
	apply := func(context.Context) error {
		full, err := full()
		for _, name := range full {
			err = errors.Join(err, empty(s.path(name)))
		}
		return err
	}
	return engine.New(diff, apply)
}

func empty(name string) error {
	dir, err := openFolder(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	f, st, err := dir.open(name, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	return dir.truncate(f, name, st)
}

// truncate empties an open file of the folder. In a folder of a daemon's user it
// may have another name elsewhere, under which it is another's.
func (f *folder) truncate(file *os.File, name string, st unix.Stat_t) error {
	if st.Nlink > 1 && !trusted(f.owner) && st.Uid != f.owner {
		return fmt.Errorf("%s is a hard link to a file of user %d in a folder of user %d, so it is not emptied: see who made it, remove it, and run again", name, st.Uid, f.owner)
	}
	return file.Truncate(0)
}
