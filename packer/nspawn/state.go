package nspawn

import (
	"github.com/hashicorp/packer-plugin-sdk/multistep"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// Keys of the state bag. The SDK's own steps read or write those of the first
// group by these names.
const (
	stateUI            = "ui"
	stateHook          = "hook"
	stateError         = "error"
	stateCommunicator  = "communicator"
	stateGeneratedData = "generated_data"

	stateSandbox   = "sandbox"   // *machine.Sandbox, by stepSandbox
	statePartition = "partition" // *partition with the root, by stepDisk
	stateMachine   = "machine"   // *machine.Machine, by stepBoot
)

// rootDir is where the image's root is mounted in the sandbox, whose /run is
// private.
const rootDir = "/run/image"

func uiOf(state multistep.StateBag) packersdk.Ui { return state.Get(stateUI).(packersdk.Ui) }

func sandboxOf(state multistep.StateBag) *machine.Sandbox {
	return state.Get(stateSandbox).(*machine.Sandbox)
}

// halt ends the build with an error.
func halt(state multistep.StateBag, err error) multistep.StepAction {
	state.Put(stateError, err)
	uiOf(state).Error(err.Error())
	return multistep.ActionHalt
}
