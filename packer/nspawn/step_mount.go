package nspawn

import (
	"context"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
)

// stepMount mounts the root partition at rootDir. The end of the sandbox
// unmounts it where stepUnmount was not reached.
//
// Uses: stateSandbox, statePartition.
type stepMount struct{ config *Config }

func (s *stepMount) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	err := mount(ctx, sandboxOf(state), s.config.workPath(), state.Get(statePartition).(*partition), "rw")
	if err != nil {
		return halt(state, err)
	}
	return multistep.ActionContinue
}

func (s *stepMount) Cleanup(multistep.StateBag) {}
