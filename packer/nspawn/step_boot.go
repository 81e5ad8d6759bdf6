package nspawn

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepBoot boots the root under systemd-nspawn.
//
// Uses: stateSandbox. Produces: stateMachine, stateCommunicator.
type stepBoot struct{ config *Config }

func (s *stepBoot) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	uiOf(state).Say("Booting the machine under systemd-nspawn")
	m, environment, err := s.machine(sandboxOf(state))
	if err != nil {
		return halt(state, err)
	}
	state.Put(stateMachine, m)
	if err := s.boot(ctx, m, uiOf(state)); err != nil {
		return halt(state, err)
	}
	state.Put(stateCommunicator, &communicator{m, environment})
	return multistep.ActionContinue
}

// machine describes the machine, and returns the environment of what the
// provisioners run in it.
func (s *stepBoot) machine(sandbox *machine.Sandbox) (_ *machine.Machine, environment []string, err error) {
	m := &machine.Machine{
		Sandbox: sandbox,
		Name:    "packer",
		Root:    rootDir,
		Network: machine.Network{Uplink: s.config.Network == NetworkUplink},
		BootArgs: []string{
			// cloud-init would take this for the first boot of an instance, and leave
			// its state in the image.
			"cloud-init=disabled",
			// The sandbox has set the network up.
			"systemd.mask=networking.service",
			// fstab names the disk of the image, which the machine does not see.
			"systemd.mask=systemd-remount-fs.service",
		},
	}
	if s.config.AptCache != "" {
		m.Binds, environment, err = aptCache(sandbox, s.config.AptCache)
	}
	return m, environment, err
}

// boot returns when the machine's systemd has finished booting.
func (s *stepBoot) boot(ctx context.Context, m *machine.Machine, ui packersdk.Ui) error {
	start := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.config.BootTimeout,
		fmt.Errorf("boot_timeout (%s) is over", s.config.BootTimeout))
	defer cancel()
	if err := m.Start(ctx); err != nil {
		return err
	}
	failed, err := m.WaitRunning(ctx)
	if err != nil {
		return err
	}
	ui.Say(fmt.Sprintf("The machine is up (%s)", time.Since(start).Round(100*time.Millisecond)))
	if len(failed) > 0 {
		// No error: some units cannot work in a container at all.
		ui.Say("Units that failed: " + strings.Join(failed, ", "))
	}
	return nil
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
