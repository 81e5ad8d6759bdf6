package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

func (c *cli) runCommand() *cobra.Command {
	var inUnit, confirm bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Make this running server a node of the mesh now, all phases in a row",
		Long: "Telephony is interrupted while XiVO's services are stopped; the report says for how long. They are started\n" +
			"in the end whatever happens: under systemd this goes on as the unit " + runUnit + " when the terminal goes away.\n" +
			"The document must say `identity: keep` (this server stays who it is) or `identity: regenerate` (it is a copy).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if inUnit {
				c.log = slog.New(&lineHandler{w: c.err}) // a person reads along
			}
			n, err := c.open()
			if err != nil {
				return err
			}
			defer func() { n.Close() }()
			if n.DocumentErr != nil {
				return asExit(n.DocumentErr)
			}
			action, why := n.Decide(confirm)
			c.log.Info("run: "+string(action), "why", why)
			switch action {
			case firstboot.LeaveAlone, firstboot.Hold:
				return exitError{exitWaiting, errors.New(why)}
			}
			// A copy's journal has settled too, as the original.
			interrupts := action != firstboot.Unchanged || !n.Settled()
			if n.Platform.HasSystemd() && !inUnit && interrupts {
				return c.runInUnit(cmd.Context(), n, confirm)
			}
			return c.runHere(cmd.Context(), n, confirm)
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "this machine is a copy, although only one of two signs says so")
	cmd.Flags().BoolVar(&inUnit, "in-unit", false, "")
	cmd.Flags().MarkHidden("in-unit")
	return cmd
}

// runUnit is the transient unit of a run.
const runUnit = "xivo-firstboot-run.service"

// runInUnit hands the work to a unit that no lost terminal ends, and that
// starts XiVO after it even if it was killed: `xivo-service stop` leaves SIP
// closed until the next start.
func (c *cli) runInUnit(ctx context.Context, n *firstboot.Node, confirm bool) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	service, err := exec.LookPath(n.Platform.Traits.ServiceCommand)
	if err != nil {
		return err
	}
	err = platform.Transient{
		Unit:  runUnit,
		Argv:  []string{program, "run", "--in-unit", fmt.Sprintf("--confirm=%t", confirm)},
		After: []string{service, "start", "all"}, // the brokers too
	}.Run(ctx, c.out)
	if ctx.Err() != nil {
		return exitError{exitWaiting, fmt.Errorf("the run goes on as %s; see `journalctl -u %s`", runUnit, runUnit)}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitError{exit.ExitCode(), fmt.Errorf("the run did not end well: see above, or `journalctl -u %s`", runUnit)}
	}
	return err
}

func (c *cli) runHere(ctx context.Context, n *firstboot.Node, confirm bool) error {
	// What reads our output may be gone; that must not end us.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := n.LockWait(ctx); err != nil {
		return err
	}
	if _, _, err := n.Begin(ctx, confirm); err != nil {
		return asExit(err)
	}
	if !n.Settled() {
		_, down, err := n.Live(ctx)
		fmt.Fprintf(c.out, "telephony was down for %s\n", down.Round(time.Second))
		if err != nil {
			return err
		}
	}
	status, changes, err := n.Converge(ctx)
	c.report(status, changes)
	return errors.Join(n.Stay(ctx), passError(status, err))
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
			if n.Journal == nil || n.Config == nil {
				return exitError{exitWaiting, errors.New(n.Waits(ctx))}
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
			for _, notice := range n.Notices() {
				fmt.Fprintln(c.out, "notice:", notice)
			}
			return nil
		},
	}
}
