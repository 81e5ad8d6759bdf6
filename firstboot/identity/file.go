package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// edit is a file of the server and what its content should become.
type edit struct {
	name string // on the server
	says string // the difference, for a person
	to   func(have []byte) []byte
}

// edits are several files as one engine.Resource, which reads each before it
// writes, and writes only what differs. A file that is there keeps its owner and
// mode; a new one is for everybody to read.
type edits struct {
	platform *platform.Platform
	list     []edit
}

// Diff says how each file differs.
func (l edits) Diff(context.Context) ([]string, error) {
	var diff []string
	err := l.each(func(e edit, _ []byte) error {
		diff = append(diff, e.name+" "+e.says)
		return nil
	})
	return diff, err
}

// Apply writes those that differ.
func (l edits) Apply(context.Context) error {
	return l.each(func(e edit, want []byte) error {
		path := l.platform.Path(e.name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		attr, err := files.Kept(path, 0o644)
		if err != nil {
			return err
		}
		return files.WriteFile(path, want, attr)
	})
}

// each calls do for every file whose content is not as it should be.
func (l edits) each(do func(e edit, want []byte) error) error {
	for _, e := range l.list {
		have, err := files.ReadFile(l.platform.Path(e.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("identity: %w", err)
		}
		want := e.to(have)
		if err == nil && bytes.Equal(have, want) {
			continue
		}
		if err := do(e, want); err != nil {
			return fmt.Errorf("identity: %w", err)
		}
	}
	return nil
}
