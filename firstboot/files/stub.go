// Package files is a stand-in until the real one is merged.
package files

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
)

type Attr struct {
	Mode     fs.FileMode
	UID, GID int
}

func Private() Attr { return Attr{0o600, os.Geteuid(), os.Getegid()} }

func WriteFile(name string, data []byte, a Attr) error {
	return platform.WriteFile(name, data, a.Mode)
}

func ReadFile(name string) ([]byte, error) { return os.ReadFile(name) }

func pl(root string) *platform.Platform { return &platform.Platform{Root: root} }

func Present(root, path string, content []byte, mode fs.FileMode) engine.Resource {
	return seal.File{Platform: pl(root), Path: path, Content: content, Mode: mode}
}
func Link(root, path, target string) engine.Resource {
	return seal.Link{Platform: pl(root), Path: path, Target: target}
}
func Absent(root string, patterns ...string) engine.Resource { return seal.Gone(pl(root), patterns...) }
func AbsentBut(root string, stay []string, patterns ...string) engine.Resource {
	return seal.Gone(pl(root), patterns...).But(stay...)
}
func Emptied(root string, patterns ...string) engine.Resource {
	return seal.Emptied(pl(root), patterns...)
}
func NoLogs(root, dir string) engine.Resource { return seal.NoLogs(pl(root), dir) }

var _ = errors.New
var _ = filepath.Join
