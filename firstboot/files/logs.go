package files

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// NoLogs is the absence of what was logged below a folder: rotated files are
// gone, all others are empty and keep owner and mode, as daemons that run have
// them open. The folder's own `journal` is not looked at: its files are no text to
// begin anew. Links below the folder are not followed.
func NoLogs(root, dir string) engine.Resource {
	l := &logs{name: server(root).path(dir), told: dir, was: map[string][]byte{}}
	return engine.New(l.diff, l.apply)
}

type logs struct {
	name string // of the folder, here
	told string // and on the server
	// was is how each file began that apply emptied: a daemon that runs writes on,
	// and what it wrote since is not what was there.
	was map[string][]byte
}

// beginning is how many bytes of an emptied file are remembered.
const beginning = 4096

// rotated are the names that logrotate and the daemons give to older logs.
var rotated = regexp.MustCompile(`\.(gz|bz2|xz|zst|old|[0-9]+)$|-[0-9]{8}$`)

// log is one regular file below the folder.
type log struct {
	dir  *folder // which it is in
	path string  // on the server
	size int64
}

// diff names the files that hold something, and the rotated ones.
func (l *logs) diff(context.Context) ([]string, error) {
	var found []string
	err := l.each(func(f log) error {
		old, err := l.old(f)
		if old {
			found = append(found, f.path)
		}
		return err
	})
	slices.Sort(found)
	return found, err
}

// old says whether a file holds what was there before apply.
func (l *logs) old(f log) (bool, error) {
	was, emptied := l.was[f.path]
	switch {
	case rotated.MatchString(f.path):
		return true, nil
	case f.size == 0 || emptied && len(was) == 0:
		return false, nil
	case !emptied:
		return true, nil
	}
	file, _, err := f.dir.open(f.path, unix.O_RDONLY)
	if err != nil {
		return false, err
	}
	defer file.Close()
	now, err := io.ReadAll(io.LimitReader(file, int64(len(was))))
	return bytes.Equal(now, was), err
}

// apply empties and removes them.
func (l *logs) apply(context.Context) error {
	return l.each(func(f log) error {
		if rotated.MatchString(f.path) {
			return failed("remove", f.path, unix.Unlinkat(f.dir.fd(), filepath.Base(f.path), 0))
		}
		file, st, err := f.dir.open(f.path, unix.O_RDWR)
		if err != nil {
			return err
		}
		defer file.Close()
		was, err := io.ReadAll(io.LimitReader(file, beginning))
		if err != nil {
			return err
		}
		l.was[f.path] = was
		return f.dir.truncate(file, f.path, st)
	})
}

// each goes through all regular files. What is gone meanwhile is no error, nor is
// a folder that is not there: nothing logs to it.
func (l *logs) each(do func(log) error) error {
	dir, err := openFolder(l.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	return l.eachIn(dir, l.told, do)
}

func (l *logs) eachIn(dir *folder, path string, do func(log) error) error {
	names, err := dir.Readdirnames(-1)
	errs := []error{err}
	for _, name := range names {
		path := filepath.Join(path, name)
		st, err := dir.stat(name)
		switch {
		case err != nil:
			err = failed("stat", path, err)
		case kind(st) == 0:
			err = do(log{dir, path, st.Size})
		case kind(st) == fs.ModeDir && path != filepath.Join(l.told, "journal"):
			err = l.eachBelow(dir, path, do)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (l *logs) eachBelow(dir *folder, path string, do func(log) error) error {
	inner, err := dir.folder(filepath.Base(path))
	if err != nil {
		return failed("open", path, err)
	}
	defer inner.Close()
	return l.eachIn(inner, path, do)
}
