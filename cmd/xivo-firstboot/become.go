package main

import (
	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
)

func (c *cli) becomeCommand() *cobra.Command {
	var confirm, same bool
	cmd := &cobra.Command{
		Use:   "become",
		Short: "Take on an identity, if this is a new instance (the first unit at boot)",
		Long: "Decides, before anything is changed, whether this instance needs an identity of its own, and takes it on.\n" +
			"Consul and RabbitMQ must not run: at boot they are started after it. On a running server use `run`.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			claim := firstboot.NoClaim
			switch {
			case confirm:
				claim = firstboot.IsCopy
			case same:
				claim = firstboot.IsSame
			}
			return bootExit(c.machine().BootBecome(cmd.Context(), claim))
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "this machine is a copy, although only one of two signs says so")
	cmd.Flags().BoolVar(&same, "same", false, "this machine is the one that it was, although one of two signs says otherwise: a VM that was moved")
	cmd.MarkFlagsMutuallyExclusive("confirm", "same")
	return cmd
}

func (c *cli) settleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "settle",
		Short: "Put Consul's KV back and set the broker up (the second unit at boot)",
		Long:  "Needs Consul and RabbitMQ running. XiVO's daemons are started after it. Does nothing on a node that has settled.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return bootExit(c.machine().BootSettle(cmd.Context()))
		},
	}
}

// bootExit maps how a unit of the boot ended to its exit code.
func bootExit(o firstboot.Outcome) error {
	switch {
	case o.Verdict == firstboot.GoOn:
		return nil
	case o.Verdict == firstboot.Wait:
		return exitError{exitWaiting, o.Why}
	case o.Verdict == firstboot.Refuse:
		return exitError{exitUsage, o.Why}
	}
	return asExit(o.Why)
}
