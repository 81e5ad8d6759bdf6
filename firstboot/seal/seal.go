// Package seal writes down what a seal did.
package seal

import (
	"context"
	"io/fs"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// What follows stands in firstboot/files, and here only until its callers ask
// there.

// Absent is files.Absent.
type Absent struct {
	engine.Resource
	root     string
	patterns []string
}

// Gone is files.Absent.
func Gone(p *platform.Platform, patterns ...string) Absent {
	return Absent{files.Absent(p.Root, patterns...), p.Root, patterns}
}

// But is files.AbsentBut.
func (a Absent) But(stay ...string) engine.Resource {
	return files.AbsentBut(a.root, stay, a.patterns...)
}

// Emptied is files.Emptied.
func Emptied(p *platform.Platform, patterns ...string) engine.Resource {
	return files.Emptied(p.Root, patterns...)
}

// NoLogs is files.NoLogs.
func NoLogs(p *platform.Platform, dir string) engine.Resource { return files.NoLogs(p.Root, dir) }

// File is files.Present.
type File struct {
	Platform *platform.Platform
	Path     string
	Content  []byte
	Mode     fs.FileMode
}

func (f File) resource() engine.Resource {
	return files.Present(f.Platform.Root, f.Path, f.Content, f.Mode)
}

// Diff is files.Present's.
func (f File) Diff(ctx context.Context) ([]string, error) { return f.resource().Diff(ctx) }

// Apply is files.Present's.
func (f File) Apply(ctx context.Context) error { return f.resource().Apply(ctx) }

// Link is files.Link.
type Link struct {
	Platform *platform.Platform
	Path     string
	Target   string
}

func (l Link) resource() engine.Resource { return files.Link(l.Platform.Root, l.Path, l.Target) }

// Diff is files.Link's.
func (l Link) Diff(ctx context.Context) ([]string, error) { return l.resource().Diff(ctx) }

// Apply is files.Link's.
func (l Link) Apply(ctx context.Context) error { return l.resource().Apply(ctx) }
