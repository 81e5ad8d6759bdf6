package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
)

func (c *cli) becomeCommand() *cobra.Command {
	var confirm bool
	cmd := &cobra.Command{
		Use:   "become",
		Short: "Take on an identity, if this is a new instance (the first unit at boot)",
		Long: "Decides, before anything is changed, whether this instance needs an identity of its own, and takes it on.\n" +
			"Consul and RabbitMQ must not run: at boot they are started after it. On a running server use `run`.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			switch action, why := n.Decide(confirm); action {
			case firstboot.Keep, firstboot.Leave:
				// Nothing is asked of the document, the lock or the servers: a
				// node that once worked is not held back by any of them.
				c.log.Info("become: "+string(action), "why", why)
				return nil
			case firstboot.Hold:
				return exitError{exitWaiting, errors.New(why)}
			}
			if err := n.Lock(); err != nil {
				return err
			}
			action, why, err := n.Begin(ctx, confirm)
			c.log.Info("become: "+string(action), "why", why)
			if err != nil {
				return exitError{exitUsage, err}
			}
			_, err = n.Run(ctx, firstboot.BecomePhase())
			return err
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "this machine is a copy, although only one of two signs says so")
	return cmd
}

func (c *cli) settleCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "settle",
		Short: "Put Consul's KV back and set the broker up (the second unit at boot)",
		Long:  "Needs Consul and RabbitMQ running. XiVO's daemons are started after it. Does nothing on a node that has settled.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			if n.Journal == nil || n.Settled() {
				c.log.Info("settle: nothing to do")
				return nil
			}
			if err := n.Lock(); err != nil {
				return err
			}
			_, err = n.Run(ctx, firstboot.SettlePhase())
			return err
		},
	}
}
