package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
)

func (c *cli) overlayCommand() *cobra.Command {
	var address bool
	cmd := &cobra.Command{
		Use:   "overlay",
		Short: "Run the mesh's own network on this node, until stopped (the units do it)",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address {
				return c.machine().OverlayAddress(cmd.Context())
			}
			err := c.machine().Overlay(cmd.Context())
			if errors.Is(err, firstboot.ErrNoOverlay) {
				c.log.Info(err.Error())
				return exitError{exitWaiting, nil}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&address, "address", false, "set the address that this node has there and the firewall, and end")
	return cmd
}
