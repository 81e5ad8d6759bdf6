package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// benchBake bakes one disk with both builders, one after the other. The times
// are those of packer build, of everything in it.
func benchBake(ctx context.Context, maker *recipe.Maker, stdout io.Writer) (err error) {
	if err := maker.VMHost(ctx); err != nil {
		return err
	}
	disk, err := maker.Disk(ctx)
	if err != nil {
		return err
	}
	if _, err := maker.Tool(ctx, "packer-plugin-qemu"); err != nil {
		return err
	}
	accelerator, err := maker.Accelerator(ctx)
	if err != nil {
		return err
	}
	scratch, release, err := cache.Scratch("bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()

	type result struct {
		took time.Duration
		size int64
	}
	measure := func(name string, bake func(dir string) (recipe.Image, error)) (result, error) {
		dir := filepath.Join(scratch, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			return result{}, err
		}
		image, err := bake(dir)
		if err != nil {
			return result{}, err
		}
		info, err := os.Stat(image.QCOW2)
		if err != nil {
			return result{}, err
		}
		return result{image.Took, info.Size()}, nil
	}
	nspawn, err := measure("nspawn", func(dir string) (recipe.Image, error) { return maker.BakeNspawn(ctx, disk, dir) })
	if err != nil {
		return err
	}
	qemu, err := measure("qemu", func(dir string) (recipe.Image, error) { return maker.BakeQEMU(ctx, disk, dir, accelerator) })
	if err != nil {
		return err
	}

	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "BUILDER\tTIME\tIMAGE\t")
	fmt.Fprintf(w, "xivo-nspawn\t%.1f s\t%.0f MiB\t\n", nspawn.took.Seconds(), mib(nspawn.size))
	fmt.Fprintf(w, "qemu (%s)\t%.1f s\t%.0f MiB\t\n", accelerator, qemu.took.Seconds(), mib(qemu.size))
	fmt.Fprintf(w, "qemu / xivo-nspawn\t%.1f\t%.2f\t\n", qemu.took.Seconds()/nspawn.took.Seconds(), mib(qemu.size)/mib(nspawn.size))
	return w.Flush()
}

func mib(bytes int64) float64 { return float64(bytes) / (1 << 20) }
