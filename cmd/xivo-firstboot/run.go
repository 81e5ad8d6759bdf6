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
	var guarded, confirm bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Make this running server a node of the mesh now, all phases in a row",
		Long: "Telephony is interrupted while XiVO's services are stopped; the report says for how long. They are started\n" +
			"in the end whatever happens: under systemd this goes on as the unit " + runUnit + " when the terminal goes away.\n" +
			"On a server that was neither sealed nor a node before, the document must say `identity: keep` (this server stays\n" +
			"who it is) or `identity: regenerate` (it is a copy).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if guarded {
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
			if interrupts && !guarded {
				return c.runGuarded(cmd.Context(), n, confirm)
			}
			return c.runHere(cmd.Context(), n, confirm)
		},
	}
	cmd.Flags().BoolVar(&confirm, "confirm", false, "this machine is a copy, although only one of two signs says so")
	cmd.Flags().BoolVar(&guarded, "guarded", false, "")
	cmd.Flags().MarkHidden("guarded")
	return cmd
}

// runUnit is the unit of a run.
const runUnit = "xivo-firstboot-run.service"

// runGuarded hands the work to somebody whom no lost terminal ends, and who
// starts XiVO after it even if it was killed: `xivo-service stop` leaves SIP
// closed until the next start.
func (c *cli) runGuarded(ctx context.Context, n *firstboot.Node, confirm bool) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	service, err := exec.LookPath(n.Platform.Traits.ServiceCommand)
	if err != nil {
		return err
	}
	err = n.Platform.RunGuarded(ctx, platform.Guarded{
		Unit:  runUnit,
		Argv:  []string{program, "run", "--guarded", fmt.Sprintf("--confirm=%t", confirm)},
		After: []string{service, "start", "all"}, // the brokers too
	}, c.out)
	if ctx.Err() != nil {
		return exitError{exitWaiting, fmt.Errorf("the run goes on as %s; see `journalctl -u %s`", runUnit, runUnit)}
	}
	if errors.Is(err, platform.ErrGuarded) {
		return exitError{exitWaiting, fmt.Errorf("a run is %w", err)}
	}
	var exit *platform.ExitError
	if errors.As(err, &exit) {
		return exitError{exit.Code, errors.New("the run did not end well: see above")}
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
	if why := n.Waits(ctx); why != "" {
		return exitError{exitWaiting, errors.Join(errors.New(why), n.Stay(ctx))}
	}
	status, changes, err := n.Converge(ctx)
	c.report(status, changes)
	return errors.Join(n.Stay(ctx), passError(status, err))
}

func (c *cli) planCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "plan",
		Short: "Print every difference that the next phase would remove; change nothing",
		Long: "The phases come one after the other, and each finds what the one before left, so the next one is planned:\n" +
			"become on a server that `run` would make a node, settle after that, and converge on a node.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			phase, changes, why, err := n.PlanNext(ctx)
			for _, change := range changes {
				for _, line := range change.Diff {
					fmt.Fprintf(c.out, "%s: %s\n", change.Step, line)
				}
			}
			switch {
			case err != nil:
				return asExit(err)
			case phase == nil:
				return exitError{exitWaiting, errors.New(why)}
			case phase.Once:
				c.log.Info("then the phases after "+phase.Name, "why", why)
			case len(changes) == 0:
				fmt.Fprintln(c.out, "nothing to change")
			}
			for _, notice := range n.Notices() {
				fmt.Fprintln(c.out, "notice:", notice)
			}
			return nil
		},
	}
}
