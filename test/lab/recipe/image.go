package recipe

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Image is a baked golden image and what belongs to it.
type Image struct {
	QCOW2    string // what a user gets
	Raw      string // the same disk, for the lab to mount
	Manifest string // of the seal
}

const template = "packer/templates/nspawn/xivo.pkr.hcl"

// Baked returns an image of the lab's XiVO, sealed. It is baked when the
// sources of anything in it changed since the last time.
func (m *Maker) Baked(ctx context.Context) (Image, error) { return m.image(ctx, false) }

// Bake bakes it in any case.
func (m *Maker) Bake(ctx context.Context) (Image, error) { return m.image(ctx, true) }

func (m *Maker) image(ctx context.Context, anew bool) (Image, error) {
	packer, err := m.Tool(ctx, "packer")
	if err != nil {
		return Image{}, err
	}
	source, err := m.XiVOTar(ctx, Version)
	if err != nil {
		return Image{}, err
	}
	if err := m.run(ctx, "make", "--no-print-directory", "build"); err != nil {
		return Image{}, err
	}
	plugin := filepath.Join(m.Repo, "dist/packer-plugin-xivo")

	key := cache.NewKey(filepath.Base(filepath.Dir(packer)), filepath.Base(filepath.Dir(source)))
	for _, file := range []string{plugin, filepath.Join(m.Repo, template)} {
		if err := key.AddFile(file); err != nil {
			return Image{}, err
		}
	}
	if anew {
		if err := cache.Drop("image", key); err != nil {
			return Image{}, err
		}
	}
	image := func(dir string) Image {
		name := filepath.Join(dir, "output", "xivo-"+Version)
		return Image{QCOW2: name + ".qcow2", Raw: name + ".raw", Manifest: filepath.Join(dir, "output", "xivo-seal-manifest.json")}
	}
	dir, err := cache.Make("image", key, func(dir string) error {
		env := []string{
			"PACKER_PLUGIN_PATH=" + filepath.Join(dir, "plugins"),
			"PACKER_CONFIG_DIR=" + filepath.Join(dir, "config"),
			"PACKER_CACHE_DIR=" + filepath.Join(dir, "cache"),
			"PACKER_NO_COLOR=1",
			"CHECKPOINT_DISABLE=1", // nothing but the mirror is asked for anything
			"TMPDIR=" + dir,
		}
		run := func(args ...string) error {
			cmd := m.command(ctx, packer, args...)
			cmd.Env = append(os.Environ(), env...)
			// Packer takes a build down in good order when it is asked to, once,
			// and is two processes, of which a kill would reach one.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 2 * time.Minute
			return m.finish(cmd)
		}
		made := image(dir)
		if err := run("plugins", "install", "--path", plugin, "github.com/xivo-mesh/xivo"); err != nil {
			return err
		}
		if err := run("build",
			"-var", "source_image="+source,
			"-var", "output_directory="+filepath.Dir(made.QCOW2),
			"-var", "xivo_version="+Version,
			"-var", "allow_configured=true", // its wizard was passed
			filepath.Join(m.Repo, template)); err != nil {
			return err
		}
		if _, err := os.Stat(made.Manifest); err != nil {
			return fmt.Errorf("packer build succeeded without a seal manifest: %w", err)
		}
		if err := m.run(ctx, "qemu-img", "convert", "-O", "raw", made.QCOW2, made.Raw); err != nil {
			return err
		}
		return keepOnly(dir, "output")
	})
	return image(dir), err
}
