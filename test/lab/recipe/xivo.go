package recipe

import (
	"context"
	"embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
)

// Version is the XiVO that the lab's machines are.
const Version = "16.03"

//go:embed xivo
var xivoFiles embed.FS

// XiVO returns the tar of a root that is laid out as XiVO lays out its own and
// has passed its wizard, never sealed: what an image is baked from. XiVO's
// daemons in it are stand-ins, PostgreSQL, RabbitMQ and Consul are the real ones.
func (m *Maker) XiVO(ctx context.Context) (string, error) {
	base, err := m.Base(ctx)
	if err != nil {
		return "", err
	}
	consul, err := m.Tool(ctx, "consul")
	if err != nil {
		return "", err
	}
	standin := filepath.Join(m.Repo, "dist/xivo-standin")
	if err := m.goBuild(ctx, m.Repo, "./test/standin/cmd/xivo-standin", standin); err != nil {
		return "", err
	}
	units := os.DirFS(filepath.Join(m.Repo, "test/standin/units"))

	key := cache.NewKey(filepath.Base(base), filepath.Base(filepath.Dir(consul)), Version, schema.SQL(Version))
	err = errors.Join(key.AddTree(xivoFiles), key.AddTree(units), key.AddFile(standin))
	if err != nil {
		return "", err
	}
	dir, err := cache.Make("xivo", key, func(dir string) error {
		layout := filepath.Join(dir, "layout")
		files, err := fs.Sub(xivoFiles, "xivo")
		if err != nil {
			return err
		}
		err = errors.Join(
			os.CopyFS(layout, files),
			os.CopyFS(filepath.Join(layout, "units"), units),
			os.WriteFile(filepath.Join(layout, "schema.sql"), []byte(schema.SQL(Version)), 0o644),
			os.Mkdir(filepath.Join(layout, "bin"), 0o755),
			copyFile(consul, filepath.Join(layout, "bin/consul")),
			copyFile(standin, filepath.Join(layout, "bin/xivo-standin")),
			os.Chmod(filepath.Join(layout, "layout.sh"), 0o755),
		)
		if err != nil {
			return err
		}
		if err := m.run(ctx, "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child",
			"env", "VERSION="+Version, "bash", filepath.Join(layout, "assemble.sh"), filepath.Join(base, "root"), dir); err != nil {
			return err
		}
		return keepOnly(dir, "root.tar")
	})
	return filepath.Join(dir, "root.tar"), err
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o755)
}

// keepOnly removes everything else from a folder.
func keepOnly(dir string, names ...string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		keep := false
		for _, name := range names {
			keep = keep || e.Name() == name
		}
		if !keep {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
		}
	}
	return err
}
