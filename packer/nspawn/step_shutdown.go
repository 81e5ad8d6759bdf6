package nspawn

import (
	"context"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepShutdown powers the machine off in good order: an image of a machine that
// was cut off is not handed out.
//
// Uses: stateMachine.
type stepShutdown struct{ config *Config }

func (s *stepShutdown) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	uiOf(state).Say("Powering the machine off")
	if err := poweroff(ctx, state.Get(stateMachine).(*machine.Machine), s.config.ShutdownTimeout); err != nil {
		return halt(state, err)
	}
	return multistep.ActionContinue
}

func (s *stepShutdown) Cleanup(multistep.StateBag) {}
