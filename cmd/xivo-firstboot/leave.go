package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// leaveTime is how long a goodbye may take: Consul is restarted.
const leaveTime = 3 * time.Minute

func (c *cli) leaveCommand() *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this node out of its mesh, or (--undo) back into it",
		Long: "The other nodes drop this one: its people from their searches, its statuses, the way to it.\n" +
			"Those that live do so within seconds; those that are away when they come back, as they hear of it from the others.\n" +
			"This node drops them too and goes on alone; its own contacts, calls and identity stay as they are. Consul is\n" +
			"restarted, telephony is not interrupted. It stays out, whatever its document says, until `leave --undo`.\n" +
			"The others are told by the service xivo-overlay, which is started where it does not run.\n" +
			"For a node that died and cannot leave, use `xivo-firstboot forget` on any other.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.asMember(cmd.Context(), func(ctx context.Context, n *node.Node) error {
				change := converge.Leave
				if undo {
					change = converge.ComeBack
				}
				result, err := change(ctx, n)
				c.report(result)
				return passError(result.Status, err)
			})
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "come back into the mesh that this node left or was taken out of")
	return cmd
}

func (c *cli) forgetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "forget UUID|HOST",
		Short: "Take a node out of the mesh that died",
		Long: "Run it on any one node. All nodes drop the dead one: its people from their searches, its links, the way to it;\n" +
			"those that are away do when they come back. The node is named by its UUID, or by its host name where that is one\n" +
			"node's only: `xivo-firstboot status` tells both. A node that lives is refused: run `xivo-firstboot leave` there.\n" +
			"Should a forgotten node come back, it stays out until `leave --undo` on it. It can do that, since it keeps the\n" +
			"mesh's secret: to shut out a node that was stolen, forget it, and change the secret.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.asMember(cmd.Context(), func(ctx context.Context, n *node.Node) error {
				m, result, err := converge.Forget(ctx, n, args[0])
				if errors.Is(err, converge.ErrNoMember) {
					return exitError{exitUsage, err}
				}
				if result.Status.State == "" {
					return err
				}
				fmt.Fprintln(c.out, "forgotten:", m)
				fmt.Fprintln(c.out, "Whoever keeps the mesh's secret can come back: to shut out a node that was stolen, change the secret, too.")
				c.report(result)
				return passError(result.Status, err)
			})
		},
	}
}

// asMember does something that only a node of a mesh can do, under its lock.
func (c *cli) asMember(ctx context.Context, do func(context.Context, *node.Node) error) error {
	n, err := c.open()
	if err != nil {
		return err
	}
	defer n.Close()
	if why := converge.Waits(ctx, n); why != "" {
		return exitError{exitWaiting, errors.New("this is no node of a mesh now: " + why)}
	}
	if err := n.LockWait(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTime)
	defer cancel()
	return do(ctx, n)
}
