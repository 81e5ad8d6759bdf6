package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
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
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			n, err := c.openAtBoot()
			if err != nil {
				return err
			}
			defer n.Close()
			action, why := n.Decide(confirm)
			if same && action != firstboot.Hold {
				return exitError{exitUsage, fmt.Errorf("become --same: nothing is in doubt here: %s", why)}
			}
			switch action {
			case firstboot.Unchanged, firstboot.LeaveAlone:
				// Nothing is asked of the document, the lock or the servers: a
				// node that once worked is not held back by any of them.
				c.log.Info("become: "+string(action), "why", why)
				if action == firstboot.Unchanged {
					n.Guard(ctx)
				}
				return nil
			case firstboot.Hold:
				return c.hold(ctx, n, same, why)
			}
			if running, err := n.Platform.Init.Active(ctx, "consul"); err != nil || running {
				return errors.Join(errors.New("become: Consul runs, so this is no boot: use `xivo-firstboot run`"), err)
			}
			if err := lock(n); err != nil {
				return err
			}
			action, why, err = n.Begin(ctx, confirm)
			c.log.Info("become: "+string(action), "why", why)
			if err != nil {
				return asExit(err)
			}
			_, err = n.Run(ctx, firstboot.BecomePhase)
			n.Guard(ctx)
			return err
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "this machine is a copy, although only one of two signs says so")
	cmd.Flags().BoolVar(&same, "same", false, "this machine is the one that it was, although one of two signs says otherwise: a VM that was moved")
	cmd.MarkFlagsMutuallyExclusive("confirm", "same")
	return cmd
}

// hold keeps the mesh parts of a machine down that may be a copy, unless a
// person says that it is none.
func (c *cli) hold(ctx context.Context, n *firstboot.Node, same bool, why string) error {
	if same {
		if err := lock(n); err != nil {
			return err
		}
		c.log.Info("become: the same machine; it goes on as the node that it was")
		return n.Same()
	}
	if running, err := n.Platform.Init.Active(ctx, "consul"); err == nil && !running {
		n.Isolate(ctx, why)
	}
	return exitError{exitWaiting, errors.New(why)}
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
			n, err := c.openAtBoot()
			if err != nil {
				return err
			}
			defer n.Close()
			if n.Journal == nil || n.Settled() {
				c.log.Info("settle: nothing to do")
				return nil
			}
			if n.Config == nil {
				return asExit(fmt.Errorf("settle: the document that this node began with cannot be read: %w", n.DocumentErr))
			}
			if err := lock(n); err != nil {
				return err
			}
			if _, err = n.Run(ctx, firstboot.SettlePhase); err == nil {
				n.GuardNewcomer(ctx)
			}
			return err
		},
	}
}

// openAtBoot opens the node for the units that XiVO's daemons wait for. A node
// that has become is not held back by what cannot be read about it now.
func (c *cli) openAtBoot() (*firstboot.Node, error) {
	n, err := c.open()
	if err != nil && firstboot.HasBecome(c.root) {
		return nil, exitError{exitWaiting, fmt.Errorf("this node has become, so nothing is held back, but look: %w", err)}
	}
	return n, err
}

// lock takes the node's lock. Who has it already does what we would do.
func lock(n *firstboot.Node) error {
	err := n.Lock()
	if errors.Is(err, firstboot.ErrBusy) {
		return exitError{exitWaiting, err}
	}
	return err
}

// asExit gives the error of a bad document its exit code.
func asExit(err error) error {
	var invalid *cloudinit.InvalidError
	if errors.As(err, &invalid) {
		return exitError{exitUsage, err}
	}
	return err
}
