package nspawn

import (
	"context"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
)

// stepConvert writes the result in the wanted format. A raw result is the disk
// that the machine ran on.
//
// Uses: stateSandbox.
type stepConvert struct{ config *Config }

func (s *stepConvert) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	if s.config.Format == FormatRaw {
		return multistep.ActionContinue
	}
	uiOf(state).Say("Writing " + s.config.imagePath())
	if err := makePrivate(s.config.imagePath()); err != nil {
		return halt(state, err)
	}
	err := sandboxOf(state).Run(ctx, "qemu-img", "convert", "-f", "raw", "-O", "qcow2",
		"-c", "-o", "compression_type=zstd", s.config.workPath(), s.config.imagePath())
	if err != nil {
		return halt(state, err)
	}
	return multistep.ActionContinue
}

func (s *stepConvert) Cleanup(multistep.StateBag) {}
