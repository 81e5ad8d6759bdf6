package identity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// file is a file of the server and what its content should become.
type file struct {
	name string // on the server
	says string // the difference, for a person
	edit func(have []byte) []byte
}

// files are several of them; the Resource that they make reads each before it
// writes, and writes only what differs.
type files struct {
	platform *platform.Platform
	list     []file
}

func (l files) diff() ([]string, error) {
	var diff []string
	err := l.each(func(f file, _ []byte) error {
		diff = append(diff, f.name+" "+f.says)
		return nil
	})
	return diff, err
}

func (l files) apply() error {
	return l.each(func(f file, want []byte) error {
		path := l.platform.Path(f.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return platform.WriteFile(path, want, 0o644)
	})
}

// each calls do for every file whose content is not as it should be.
func (l files) each(do func(f file, want []byte) error) error {
	for _, f := range l.list {
		have, err := os.ReadFile(l.platform.Path(f.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("identity: %w", err)
		}
		want := f.edit(have)
		if err == nil && bytes.Equal(have, want) {
			continue
		}
		if err := do(f, want); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return nil
}
