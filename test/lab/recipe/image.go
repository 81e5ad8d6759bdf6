package recipe

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Image is a baked golden image and what belongs to it.
type Image struct {
	QCOW2    string        // what a user gets
	Raw      string        // the same disk, for the lab to mount
	Manifest string        // of the seal
	Values   string        // what was the original's own, of the seal
	Took     time.Duration // of packer build; 0 when it was in the cache
}

// Baked returns an image of the lab's XiVO, sealed. It is baked when the
// sources of anything in it changed since the last time.
func (m *Maker) Baked(ctx context.Context) (Image, error) { return m.image(ctx, false) }

// Bake bakes it in any case.
func (m *Maker) Bake(ctx context.Context) (Image, error) { return m.image(ctx, true) }

func (m *Maker) image(ctx context.Context, anew bool) (Image, error) {
	source, err := m.XiVOTar(ctx, Version)
	if err != nil {
		return Image{}, err
	}
	key, err := m.bakeKey(ctx, source, template("nspawn"))
	if err != nil {
		return Image{}, err
	}
	if anew {
		if err := cache.Drop("image", key); err != nil {
			return Image{}, err
		}
	}
	dir, err := cache.Make("image", key, func(dir string) error {
		packer, err := m.Packer(ctx, dir)
		if err != nil {
			return err
		}
		made, err := packer.bake(ctx, "nspawn", dir, "-var", "source_image="+source)
		if err != nil {
			return err
		}
		if err := m.run(ctx, "qemu-img", "convert", "-O", "raw", made.QCOW2, made.Raw); err != nil {
			return err
		}
		return keepOnly(dir, outputDir)
	})
	return imageIn(dir), err
}

// Prove searches the image for all that was its original's own.
func (i Image) Prove(ctx context.Context) (remains.Proof, error) {
	f, err := os.Open(i.Values)
	if err != nil {
		return remains.Proof{}, err
	}
	defer f.Close()
	values, err := remains.Decode(f)
	if err != nil {
		return remains.Proof{}, err
	}
	return remains.Prove(ctx, i.QCOW2, values, nil)
}

// outputDir is where a template puts the image.
const outputDir = "output"

// imageIn is the image that was baked in a folder.
func imageIn(dir string) Image {
	name := filepath.Join(dir, outputDir, "xivo-"+Version)
	return Image{QCOW2: name + ".qcow2", Raw: name + ".raw", Manifest: filepath.Join(dir, outputDir, "xivo-seal-manifest.json"), Values: filepath.Join(dir, outputDir, "xivo-seal-values.json")}
}
