package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
)

func (c *cli) convergeCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "converge",
		Short: "Make this node match the mesh, once or (--watch) from now on",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return c.watch(cmd.Context())
			}
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			if why := converge.Waits(cmd.Context(), n); why != "" {
				c.log.Info("converge: waiting", "why", why)
				return exitError{exitWaiting, nil}
			}
			if err := n.LockWait(cmd.Context()); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), passTime)
			defer cancel()
			var m converge.Memory
			defer m.Close()
			result, err := converge.Converge(ctx, n, &m)
			c.report(result)
			return passError(result.Status, err)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "go on until stopped; newcomers are taken in within seconds")
	return cmd
}

// passTime is how long one pass may take, also when servers of this machine are
// down.
const passTime = 3 * time.Minute

// watch logs each change of the node's state.
func (c *cli) watch(ctx context.Context) error {
	m := c.machine()
	m.Progress = changesOnly(m.Progress)
	var last converge.State
	return m.Watch(ctx, func(r converge.Result) {
		if s := r.Status; s.State != last {
			c.log.Info("state: "+string(s.State), "why", s.Why, "peers", peerList(s))
			last = s.State
		}
	})
}

// report prints what a pass changed, and where it left the node.
func (c *cli) report(r converge.Result) {
	steps := map[string]bool{}
	for _, e := range r.Report.Changed() {
		steps[e.ID()] = true
	}
	if len(steps) == 0 {
		fmt.Fprintln(c.out, "nothing to change")
	} else {
		fmt.Fprintf(c.out, "changed: %d steps\n", len(steps))
	}
	s := r.Status
	for _, notice := range s.Notices {
		fmt.Fprintln(c.out, "notice:", notice)
	}
	fmt.Fprintln(c.out, "state:", s.State, s.Why)
}

func peerList(s converge.Status) string {
	var names []string
	for _, p := range s.Peers {
		names = append(names, p.Host)
	}
	return strings.Join(names, " ")
}

// passError is the exit of a pass: a node that is joining has errors, and is
// joining all the same.
func passError(s converge.Status, err error) error {
	if state := stateError(s); state != nil {
		return exitError{exitWaiting, err}
	}
	return err
}

// stateError maps a state that is not an end to its exit code.
func stateError(s converge.Status) error {
	switch s.State {
	case converge.Joining, converge.Waiting:
		return exitError{exitWaiting, nil}
	}
	return nil
}
