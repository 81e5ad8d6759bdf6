package main

import (
	"context"
	"errors"
	"fmt"
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
	var inUnit bool
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Make this running server a node of the mesh now, all phases in a row",
		Long: "Telephony is interrupted while XiVO's services are stopped; the report says for how long. They are started\n" +
			"in the end whatever happens: under systemd this goes on as the unit " + runUnit + " when the terminal goes away.\n" +
			"The document must say `identity: keep` (this server stays who it is) or `identity: regenerate` (it is a copy).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := c.open()
			if err != nil {
				return err
			}
			defer func() { n.Close() }()
			if n.DocumentErr != nil {
				return exitError{exitUsage, n.DocumentErr}
			}
			action, why := n.Decide(false)
			c.log.Info("run: "+string(action), "why", why)
			switch action {
			case firstboot.Leave, firstboot.Hold:
				return exitError{exitWaiting, errors.New(why)}
			}
			if n.Platform.HasSystemd() && !inUnit && !n.Settled() {
				return c.runInUnit(cmd.Context())
			}
			return c.runHere(cmd.Context(), n)
		},
	}
	cmd.Flags().BoolVar(&inUnit, "in-unit", false, "")
	cmd.Flags().MarkHidden("in-unit")
	return cmd
}

// runUnit is the transient unit of a run.
const runUnit = "xivo-firstboot-run.service"

// runInUnit hands the work to a unit that no lost terminal ends, and that
// starts XiVO after it even if it was killed: `xivo-service stop` leaves SIP
// closed until the next start.
func (c *cli) runInUnit(ctx context.Context) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	service, err := exec.LookPath("xivo-service")
	if err != nil {
		return err
	}
	err = platform.Transient{
		Unit:  runUnit,
		Argv:  []string{program, "run", "--in-unit"},
		After: []string{service, "start"},
	}.Run(ctx, c.out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exitError{exit.ExitCode(), fmt.Errorf("the run did not end well: see above, or `journalctl -u %s`", runUnit)}
	}
	return err
}

func (c *cli) runHere(ctx context.Context, n *firstboot.Node) error {
	// What reads our output may be gone; that must not end us.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	if err := n.Lock(); err != nil {
		return err
	}
	if _, _, err := n.Begin(ctx, false); err != nil {
		return exitError{exitUsage, err}
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
	if err := errors.Join(err, n.Stay(ctx)); err != nil {
		return err
	}
	return stateError(status)
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
