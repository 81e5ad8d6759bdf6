// Package nspawn is the Packer builder xivo-nspawn. It boots a Debian root
// under systemd-nspawn on a loop mount of a disk image, lets the provisioners
// work in it, and writes a disk image that boots anywhere. It needs root, but
// no hypervisor, and neither systemd nor a network set-up on the host.
package nspawn

import (
	"context"
	"errors"

	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/multistep"
	"github.com/hashicorp/packer-plugin-sdk/multistep/commonsteps"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// BuilderID marks artifacts of this builder.
const BuilderID = "xivo.nspawn"

// Builder is the Packer builder.
type Builder struct {
	config Config
}

var _ packersdk.Builder = (*Builder)(nil)

// ConfigSpec describes the configuration to Packer.
func (b *Builder) ConfigSpec() hcldec.ObjectSpec { return b.config.FlatMapstructure().HCL2Spec() }

// Prepare checks the configuration.
func (b *Builder) Prepare(raws ...any) (generated, warnings []string, err error) {
	warnings, err = b.config.Prepare(raws...)
	return nil, warnings, err
}

// Run builds the image. Whatever happens, nothing of the build stays on the host
// but, on success, the output directory.
func (b *Builder) Run(ctx context.Context, ui packersdk.Ui, hook packersdk.Hook) (packersdk.Artifact, error) {
	state := new(multistep.BasicStateBag)
	state.Put(stateUI, ui)
	state.Put(stateHook, hook)

	c := &b.config
	steps := []multistep.Step{
		&stepPreflight{c},
		&commonsteps.StepOutputDir{Path: c.OutputDirectory, Force: c.PackerForce},
		&stepSandbox{},
		&stepDisk{c},
		&stepMount{c},
		&stepUnpack{c},
		&stepBoot{c},
		&commonsteps.StepProvision{},
		&stepShutdown{c},
		&stepUnmount{c},
		&stepConvert{c},
	}
	commonsteps.NewRunnerWithPauseFn(steps, c.PackerConfig, ui, state).Run(ctx, state)

	if err, ok := state.GetOk(stateError); ok {
		return nil, err.(error)
	}
	if _, ok := state.GetOk(multistep.StateCancelled); ok {
		return nil, errors.New("the build was cancelled")
	}
	if _, ok := state.GetOk(multistep.StateHalted); ok {
		return nil, errors.New("the build was halted")
	}
	return newArtifact(c.OutputDirectory, state.Get(stateGeneratedData))
}
