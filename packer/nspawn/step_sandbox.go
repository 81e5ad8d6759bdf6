package nspawn

import (
	"context"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepSandbox makes the namespaces that everything after it happens in.
//
// Produces: stateSandbox.
type stepSandbox struct{ sandbox *machine.Sandbox }

func (s *stepSandbox) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	var err error
	if s.sandbox, err = machine.NewSandbox(ctx); err != nil {
		return halt(state, err)
	}
	state.Put(stateSandbox, s.sandbox)
	return multistep.ActionContinue
}

func (s *stepSandbox) Cleanup(state multistep.StateBag) {
	if s.sandbox == nil {
		return
	}
	if err := s.sandbox.Close(); err != nil {
		uiOf(state).Error(err.Error())
	}
}
