package nspawn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepBoot boots the root under systemd-nspawn.
//
// Uses: stateSandbox. Produces: stateMachine, stateCommunicator.
type stepBoot struct{ config *Config }

func (s *stepBoot) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	ui := uiOf(state)
	ui.Say("Booting the machine under systemd-nspawn")
	m := &machine.Machine{
		Sandbox: sandboxOf(state),
		Name:    "packer",
		Root:    rootDir,
		Network: machine.Network{Uplink: s.config.Network == NetworkUplink},
		BootArgs: []string{
			// This boot is no instance's first one: nothing of it may stay.
			"cloud-init=disabled",
			// The network is there before the machine is.
			"systemd.mask=networking.service",
			// fstab speaks of the disk that the image will be on.
			"systemd.mask=systemd-remount-fs.service",
		},
	}
	var environment []string
	if s.config.AptCache != "" {
		var err error
		if m.Binds, environment, err = aptCache(sandboxOf(state), s.config.AptCache); err != nil {
			return halt(state, err)
		}
	}
	state.Put(stateMachine, m)

	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.config.BootTimeout,
		fmt.Errorf("boot_timeout (%s) is over", s.config.BootTimeout))
	defer cancel()
	if err := m.Start(ctx); err != nil {
		return halt(state, err)
	}
	failed, err := m.WaitRunning(ctx)
	if err != nil {
		return halt(state, err)
	}
	ui.Say(fmt.Sprintf("The machine is up (%s)", time.Since(start).Round(100*time.Millisecond)))
	if len(failed) > 0 {
		// Not our judgement: some units cannot work in a container at all.
		ui.Say("Units that failed: " + strings.Join(failed, ", "))
	}
	state.Put(stateCommunicator, &communicator{m, environment})
	return multistep.ActionContinue
}

func (s *stepBoot) Cleanup(state multistep.StateBag) {
	if m, ok := state.Get(stateMachine).(*machine.Machine); ok {
		if err := poweroff(context.Background(), m, s.config.ShutdownTimeout); err != nil {
			uiOf(state).Error(err.Error())
		}
	}
}

// poweroff does nothing for a machine that is off.
func poweroff(ctx context.Context, m *machine.Machine, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("shutdown_timeout (%s) is over", timeout))
	defer cancel()
	return m.Poweroff(ctx)
}
