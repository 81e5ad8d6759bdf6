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
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
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
			if err := n.Document.Err; err != nil {
				return asExit(err)
			}
			action, why := n.Decide(confirm)
			c.log.Info("run: "+string(action), "why", why)
			switch action {
			case node.LeaveAlone, node.InDoubt:
				return exitError{exitWaiting, errors.New(why)}
			}
			if firstboot.WillInterrupt(n, action) && !guarded {
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
func (c *cli) runGuarded(ctx context.Context, n *node.Node, confirm bool) error {
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

func (c *cli) runHere(ctx context.Context, n *node.Node, confirm bool) error {
	// What reads our output may be gone; that must not end us.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	ran, err := firstboot.Run(ctx, n, confirm)
	if ran.Interrupted {
		fmt.Fprintf(c.out, "telephony was down for %s\n", ran.Down.Round(time.Second))
	}
	if ran.Waits != "" {
		return exitError{exitWaiting, errors.Join(errors.New(ran.Waits), err)}
	}
	if ran.Pass.Status.State == "" {
		return asExit(err)
	}
	c.report(ran.Pass)
	return passError(ran.Pass.Status, err)
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
			planned, err := firstboot.Plan(ctx, n)
			c.printPlan(planned)
			switch {
			case err != nil:
				return asExit(err)
			case planned.Phase == "":
				return exitError{exitWaiting, errors.New(planned.Why)}
			case planned.Once:
				c.log.Info("then the phases after "+planned.Phase, "why", planned.Why)
			}
			return nil
		},
	}
}

// printPlan prints what differs, a line each, and then what does not concern this
// server.
func (c *cli) printPlan(p firstboot.Planned) {
	differs := false
	for _, e := range p.Report {
		if e.Follows != "" {
			fmt.Fprintf(c.out, "%s: follows from %s\n", e.ID(), e.Follows)
		}
		for _, line := range e.Changes {
			fmt.Fprintf(c.out, "%s: %s\n", e.ID(), line)
		}
		differs = differs || e.Follows != "" || len(e.Changes) > 0
	}
	if p.Phase != "" && !differs {
		fmt.Fprintln(c.out, "nothing to change")
	}
	for _, e := range p.Report {
		if e.Skipped != "" {
			fmt.Fprintf(c.out, "skipped: %s, because %s\n", e.ID(), e.Skipped)
		}
	}
	for _, notice := range p.Notices {
		fmt.Fprintln(c.out, "notice:", notice)
	}
}
