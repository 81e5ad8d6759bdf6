package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
)

func (c *cli) runCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Make this running server a node of the mesh now, all phases in a row",
		Long: "Telephony is interrupted while XiVO's services are stopped; the report says for how long.\n" +
			"The document must say `identity: keep` (this server stays who it is) or `identity: regenerate` (it is a copy).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			if err := n.Lock(); err != nil {
				return err
			}
			if n.DocumentErr != nil {
				return exitError{exitUsage, n.DocumentErr}
			}
			action, why, err := n.Begin(ctx, false)
			c.log.Info("run: "+string(action), "why", why)
			if err != nil {
				return exitError{exitUsage, err}
			}
			switch {
			case action == firstboot.Leave || action == firstboot.Hold:
				return exitError{exitWaiting, errors.New(why)}
			case !n.Settled():
				_, down, err := n.Live(ctx)
				fmt.Fprintf(c.out, "telephony was down for %s\n", down.Round(time.Second))
				if err != nil {
					return err
				}
			}
			status, changes, err := n.Converge(ctx)
			c.report(status, changes)
			if err := errors.Join(err, n.Stay(ctx)); err != nil {
				return err
			}
			return stateError(status)
		},
	}
}

func (c *cli) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "Print every difference that the next pass would remove; change nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			if n.Journal == nil {
				return exitError{exitWaiting, errors.New("this machine has not become a node: see `xivo-firstboot run --help`")}
			}
			total := 0
			for _, p := range firstboot.Phases() {
				changes, err := n.Plan(ctx, p)
				for _, change := range changes {
					for _, line := range change.Diff {
						fmt.Fprintf(c.out, "%s: %s\n", change.Step, line)
						total++
					}
				}
				if err != nil {
					return err
				}
			}
			if total == 0 {
				fmt.Fprintln(c.out, "nothing to change")
			}
			return nil
		},
	}
}
