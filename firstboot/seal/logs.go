package seal

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// NoLogs is the absence of what was logged below a folder: rotated files are
// gone, all others are empty and keep owner and mode, as daemons that run have
// them open. The journal is not looked at: its files are no text to begin anew.
func NoLogs(p *platform.Platform, dir string) *Logs {
	return &Logs{platform: p, dir: dir, was: map[string][]byte{}}
}

// Logs is what NoLogs returns.
type Logs struct {
	platform *platform.Platform
	dir      string
	// was is how each file began that Apply emptied: a daemon that runs writes on,
	// and what it wrote since is not what was there.
	was map[string][]byte
}

// rotated are the names that logrotate and the daemons give to older logs.
var rotated = regexp.MustCompile(`\.(gz|bz2|xz|zst|old|[0-9]+)$|-[0-9]{8}$`)

// Diff names the files that hold something, and the rotated ones.
func (l *Logs) Diff(context.Context) ([]string, error) {
	var found []string
	err := l.each(func(name, file string, goes bool, st fs.FileInfo) error {
		if !goes {
			if st.Size() == 0 {
				return nil
			}
			if was, emptied := l.was[name]; emptied {
				now, err := begin(file, len(was))
				if err != nil || len(was) == 0 || !bytes.Equal(now, was) {
					return err
				}
			}
		}
		found = append(found, name)
		return nil
	})
	return found, err
}

// Apply empties and removes them.
func (l *Logs) Apply(context.Context) error {
	return l.each(func(name, file string, goes bool, _ fs.FileInfo) error {
		if goes {
			return os.Remove(file)
		}
		was, err := begin(file, 4096)
		if err != nil {
			return err
		}
		l.was[name] = was
		return os.Truncate(file, 0)
	})
}

// each goes through all regular files; goes: it is not written to again.
func (l *Logs) each(do func(name, file string, goes bool, st fs.FileInfo) error) error {
	// With a slash, so that a link to another disk is followed.
	root := l.platform.Path(l.dir) + "/"
	var errs []error
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // rotated meanwhile, or nothing logs here
		}
		if err == nil && d.IsDir() && file == filepath.Join(root, "journal") {
			return fs.SkipDir
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil {
			name := filepath.Join(l.dir, strings.TrimPrefix(file, root))
			err = do(name, file, rotated.MatchString(name), st)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// begin is how a file begins.
func begin(file string, n int) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(n)))
}
