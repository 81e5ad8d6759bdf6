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
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
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
			defer func() {
				adopted := action == firstboot.Adopt || action == firstboot.Resume && n.Identity().Adopted
				err = c.holdBack(!adopted, err)
			}()
			// Both start after this at boot. One that is started again later on a
			// server where XiVO runs, although a run failed, is not held back.
			for _, broker := range []string{"consul", "rabbitmq-server"} {
				if running, err := n.Platform.Init.Active(ctx, broker); err != nil {
					return err
				} else if running {
					run := "xivo-firstboot run"
					if confirm {
						run += " --confirm"
					}
					return exitError{exitWaiting, fmt.Errorf("become: %s runs, so this is no boot, and nothing was changed: use `%s`", broker, run)}
				}
			}
			if err := n.Lock(); err != nil {
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
		if err := n.Lock(); err != nil {
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
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
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
			if action, why := n.Decide(false); action != firstboot.Unchanged {
				return exitError{exitWaiting, fmt.Errorf("settle: become comes first, so nothing was changed: %s", why)}
			}
			defer func() { err = c.holdBack(!n.Identity().Adopted, err) }()
			if n.Config == nil {
				return asExit(fmt.Errorf("settle: the document that this node began with cannot be read: %w", n.DocumentErr))
			}
			if err := n.Lock(); err != nil {
				return err
			}
			if _, err = n.Run(ctx, firstboot.SettlePhase); err == nil {
				n.GuardNewcomer(ctx)
			}
			return err
		},
	}
}

// openAtBoot opens the node for the units that XiVO's daemons wait for. They wait
// for nothing that cannot be read, but where an identity is still to be taken on.
func (c *cli) openAtBoot() (*firstboot.Node, error) {
	n, err := c.open()
	if err != nil && !firstboot.MustBecome(c.root) {
		return nil, exitError{exitWaiting, fmt.Errorf("nothing is held back for it, but look: %w", err)}
	}
	return n, err
}

// holdBack ends a unit that XiVO's daemons wait for with its error, unless they
// must not be held: a server that was adopted worked before, and works on.
func (c *cli) holdBack(hold bool, err error) error {
	var exit exitError
	if err == nil || hold || errors.As(err, &exit) && exit.code == exitWaiting {
		return err
	}
	return exitError{exitWaiting, fmt.Errorf("this server worked before it was made a node, so nothing is held back, but look, then `xivo-firstboot run`: %w", err)}
}

// asExit gives the error of a bad document its exit code.
func asExit(err error) error {
	var invalid *cloudinit.InvalidError
	if errors.As(err, &invalid) {
		return exitError{exitUsage, err}
	}
	return err
}
