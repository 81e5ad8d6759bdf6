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

// Version is the XiVO of the lab's machines, unless a test names another one.
// schema.Eras lists all.
const Version = "16.03"

//go:embed xivo
var xivoFiles embed.FS

// XiVO returns the folders of a root that is laid out as a XiVO of that version
// lays out its own and has passed its wizard, never sealed: a Debian, and what
// is to be laid over it. Neither may be written to: mount an overlay.
//
// XiVO's daemons in it are stand-ins. PostgreSQL, RabbitMQ and Consul are real
// ones, those of Debian 12 and Consul 1.10 for every version.
func (m *Maker) XiVO(ctx context.Context, version string) (debian, layer string, err error) {
	base, err := m.Base(ctx)
	if err != nil {
		return "", "", err
	}
	debian = filepath.Join(base, "root")
	consul, err := m.Tool(ctx, "consul")
	if err != nil {
		return "", "", err
	}
	standin := filepath.Join(m.Repo, "dist/xivo-standin")
	if err := m.goBuild(ctx, m.Repo, "./test/standin/cmd/xivo-standin", standin); err != nil {
		return "", "", err
	}
	units := os.DirFS(filepath.Join(m.Repo, "test/standin/units"))

	key := cache.NewKey(filepath.Base(base), filepath.Base(filepath.Dir(consul)), version, schema.SQL(version))
	err = errors.Join(key.AddTree(xivoFiles), key.AddTree(units), key.AddFile(standin))
	if err != nil {
		return "", "", err
	}
	dir, err := cache.Make("xivo-"+version, key, func(dir string) error {
		layout := filepath.Join(dir, "layout")
		files, err := fs.Sub(xivoFiles, "xivo")
		if err != nil {
			return err
		}
		err = errors.Join(
			os.CopyFS(layout, files),
			os.CopyFS(filepath.Join(layout, "units"), units),
			os.WriteFile(filepath.Join(layout, "schema.sql"), []byte(schema.SQL(version)), 0o644),
			os.Mkdir(filepath.Join(layout, "bin"), 0o755),
			copyFile(consul, filepath.Join(layout, "bin/consul")),
			copyFile(standin, filepath.Join(layout, "bin/xivo-standin")),
			os.Chmod(filepath.Join(layout, "layout.sh"), 0o755),
		)
		if err != nil {
			return err
		}
		if err := m.run(ctx, "unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child",
			"env", "VERSION="+version, "bash", filepath.Join(layout, "assemble.sh"), debian, dir); err != nil {
			return err
		}
		return keepOnly(dir, "layer")
	})
	return debian, filepath.Join(dir, "layer"), err
}

// XiVOTar returns the same root as a tar: what an image is baked from.
func (m *Maker) XiVOTar(ctx context.Context, version string) (string, error) {
	debian, layer, err := m.XiVO(ctx, version)
	if err != nil {
		return "", err
	}
	key := cache.NewKey(filepath.Base(filepath.Dir(debian)), filepath.Base(filepath.Dir(layer)))
	dir, err := cache.Make("xivo", key, func(dir string) error {
		const pack = `mount -t overlay -o "lowerdir=$1:$2" overlay "$3/root" &&
exec tar --create --file="$3/root.tar" --directory="$3/root" --one-file-system --numeric-owner --xattrs --xattrs-include='*' .`
		if err := os.Mkdir(filepath.Join(dir, "root"), 0o755); err != nil {
			return err
		}
		if err := m.run(ctx, "unshare", "--mount", "bash", "-euc", pack, "pack", layer, debian, dir); err != nil {
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
