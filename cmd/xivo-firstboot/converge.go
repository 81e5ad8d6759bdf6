package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
)

func (c *cli) convergeCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "converge",
		Short: "Make this node match the mesh, once or (--watch) from now on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := c.open()
			if err != nil {
				return err
			}
			defer func() { n.Close() }()
			if why := n.Waits(cmd.Context()); why != "" {
				c.log.Info("converge: waiting", "why", why)
				if !watch {
					return exitError{exitWaiting, nil}
				}
				if n, err = c.waitUntilReady(cmd.Context(), n); err != nil {
					return err
				}
			}
			if watch {
				var last firstboot.State
				return n.Watch(cmd.Context(), func(s firstboot.Status, _ []firstboot.Change) {
					if s.State != last {
						c.log.Info("state: "+string(s.State), "why", s.Why, "peers", peerList(s))
						last = s.State
					}
				})
			}
			if err := n.LockWait(cmd.Context()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), passTime)
			defer cancel()
			status, changes, err := n.Converge(ctx)
			c.report(status, changes)
			return passError(status, err)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on until stopped; newcomers are taken in within seconds")
	return cmd
}

// passTime is how long one pass may take, also when servers of this machine are
// down.
const passTime = 3 * time.Minute

// waitUntilReady looks again and again at a node that waits, until it does not
// or ctx ends. To end instead would be to be started again, without end.
func (c *cli) waitUntilReady(ctx context.Context, n *firstboot.Node) (*firstboot.Node, error) {
	again := time.NewTicker(5 * time.Second)
	defer again.Stop()
	for n.Waits(ctx) != "" {
		select {
		case <-ctx.Done():
			return n, exitError{exitDone, nil}
		case <-again.C:
		}
		now, err := c.open()
		if err != nil {
			return n, err
		}
		n.Close()
		n = now
	}
	return n, nil
}

// report prints what a pass changed, and where it left the node.
func (c *cli) report(s firstboot.Status, changes []firstboot.Change) {
	steps := map[string]bool{}
	for _, change := range changes {
		steps[change.Step] = true
	}
	if len(changes) == 0 {
		fmt.Fprintln(c.out, "nothing to change")
	} else {
		fmt.Fprintf(c.out, "changed: %d steps\n", len(steps))
	}
	for _, notice := range s.Notices {
		fmt.Fprintln(c.out, "notice:", notice)
	}
	fmt.Fprintln(c.out, "state:", s.State, s.Why)
}

func peerList(s firstboot.Status) string {
	var names []string
	for _, p := range s.Peers {
		names = append(names, p.Host)
	}
	return strings.Join(names, " ")
}

// passError is the exit of a pass: a node that is joining has errors, and is
// joining all the same.
func passError(s firstboot.Status, err error) error {
	if state := stateError(s); state != nil {
		return exitError{exitWaiting, err}
	}
	return err
}

// stateError maps a state that is not an end to its exit code.
func stateError(s firstboot.Status) error {
	switch s.State {
	case firstboot.Joining, firstboot.Waiting:
		return exitError{exitWaiting, nil}
	}
	return nil
}
