// Package seal takes a Debian's own identity out of it, and writes down what
// was done. It wraps the file system: what belongs to XiVO, Consul or RabbitMQ
// is in their packages, and only firstboot puts them in order.
package seal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Gone is the absence of all files that match the patterns; a folder that
// matches goes with what is in it.
func Gone(p *platform.Platform, patterns ...string) *Absent { return &Absent{p, patterns, nil} }

// Absent is what Gone returns.
type Absent struct {
	platform *platform.Platform
	patterns []string
	stay     []string
}

// But leaves files where they are that would match.
func (a *Absent) But(files ...string) *Absent {
	for _, f := range files {
		a.stay = append(a.stay, a.platform.Path(f))
	}
	return a
}

// Diff names the files that are there, as paths of the server.
func (a *Absent) Diff(context.Context) ([]string, error) {
	found, err := a.find()
	for i := range found {
		rel, _ := filepath.Rel(a.platform.Root, found[i])
		found[i] = filepath.Join("/", rel)
	}
	return found, err
}

// Apply removes them.
func (a *Absent) Apply(context.Context) error {
	found, err := a.find()
	for _, f := range found {
		err = errors.Join(err, os.RemoveAll(f))
	}
	return err
}

func (a *Absent) find() ([]string, error) {
	var found []string
	for _, pattern := range a.patterns {
		m, err := filepath.Glob(a.platform.Path(pattern))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", pattern, err)
		}
		found = append(found, m...)
	}
	found = slices.DeleteFunc(found, func(f string) bool { return slices.Contains(a.stay, f) })
	slices.Sort(found)
	return slices.Compact(found), nil
}

// Emptied is the emptiness of all files that match the patterns: they stay,
// with their owners and modes, for who wants to write on.
func Emptied(p *platform.Platform, patterns ...string) *Empty {
	return &Empty{Gone(p, patterns...)}
}

// Empty is what Emptied returns.
type Empty struct{ files *Absent }

// Diff names the files that hold something.
func (e *Empty) Diff(context.Context) ([]string, error) {
	full, err := e.full()
	for i := range full {
		rel, _ := filepath.Rel(e.files.platform.Root, full[i])
		full[i] = filepath.Join("/", rel)
	}
	return full, err
}

// Apply truncates them.
func (e *Empty) Apply(context.Context) error {
	full, err := e.full()
	for _, f := range full {
		err = errors.Join(err, os.Truncate(f, 0))
	}
	return err
}

func (e *Empty) full() ([]string, error) {
	found, err := e.files.find()
	var full []string
	for _, f := range found {
		st, statErr := os.Lstat(f)
		if statErr != nil {
			err = errors.Join(err, statErr)
		} else if st.Mode().IsRegular() && st.Size() > 0 {
			full = append(full, f)
		}
	}
	return full, err
}

// File is the presence of one file with this content and mode.
type File struct {
	Platform *platform.Platform
	Path     string
	Content  []byte
	Mode     fs.FileMode
}

// Diff says whether content or mode differ.
func (f File) Diff(context.Context) ([]string, error) {
	name := f.Platform.Path(f.Path)
	have, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{f.Path + " is missing"}, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if string(have) != string(f.Content) || st.Mode().Perm() != f.Mode {
		return []string{f.Path + " differs"}, nil
	}
	return nil, nil
}

// Apply writes it.
func (f File) Apply(context.Context) error {
	name := f.Platform.Path(f.Path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := platform.WriteFile(name, f.Content, f.Mode); err != nil {
		return err
	}
	return os.Chmod(name, f.Mode)
}

// Link is the presence of a symbolic link.
type Link struct {
	Platform *platform.Platform
	Path     string
	Target   string
}

// Diff says whether it is missing or leads elsewhere.
func (l Link) Diff(context.Context) ([]string, error) {
	target, err := os.Readlink(l.Platform.Path(l.Path))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if target == l.Target {
		return nil, nil
	}
	return []string{l.Path + " does not lead to " + l.Target}, nil
}

// Apply makes it.
func (l Link) Apply(context.Context) error {
	name := l.Platform.Path(l.Path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(l.Target, name)
}
