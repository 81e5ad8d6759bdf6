// Command xivo-firstboot makes a XiVO a node of a mesh, and takes it out of an
// image again.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// version is set by the linker.
var version = "dev"

// The exit codes, in full.
const (
	exitDone    = 0 // alone, joined or degraded
	exitFailed  = 1
	exitUsage   = 2 // bad document or usage
	exitWaiting = 3 // joining or waiting; the units count it as success
)

// exitError carries an exit code through cobra.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string { return e.err.Error() }
func (e exitError) Unwrap() error { return e.err }

// stdio is what a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], stdio{os.Stdin, os.Stdout, os.Stderr})
	stop()
	os.Exit(code)
}

// run is the whole program: it returns the exit code.
func run(ctx context.Context, args []string, io stdio) int {
	c := &cli{stdio: io}
	root := c.command()
	root.SetArgs(args)
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	var exit exitError
	if errors.As(err, &exit) {
		if exit.err != nil {
			fmt.Fprintln(io.err, "xivo-firstboot:", exit.err)
		}
		return exit.code
	}
	fmt.Fprintln(io.err, "xivo-firstboot:", err)
	if errors.Is(err, node.ErrBusy) || errors.Is(err, firstboot.ErrNotDecided) {
		return exitWaiting // who has the lock may do what we would, or a person has to say
	}
	return exitFailed
}

// cli is what the subcommands share.
type cli struct {
	stdio
	root string
	log  *slog.Logger
}

func (c *cli) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "xivo-firstboot",
		Short:         "Make a XiVO a node of a mesh that shares contacts and live statuses",
		Long:          longHelp(),
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRun: func(*cobra.Command, []string) {
			c.log = newLogger(c.err)
		},
	}
	cmd.PersistentFlags().StringVar(&c.root, "root", "/", "the root of the server, for tests")
	cmd.PersistentFlags().MarkHidden("root")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return exitError{exitUsage, fmt.Errorf("%w; see --help", err)}
	})
	cmd.AddCommand(
		c.runCommand(), c.becomeCommand(), c.settleCommand(), c.convergeCommand(), c.planCommand(),
		c.statusCommand(), c.doctorCommand(), c.leaveCommand(), c.forgetCommand(), c.overlayCommand(), c.sealCommand(), c.secretCommand(), c.seedCommand(), c.validateCommand(), c.versionCommand(),
	)
	return cmd
}

// longHelp shows the phases as they are.
func longHelp() string {
	s := "Driven by the key `xivo` in cloud-init's user data. What happens, in order:\n"
	for _, p := range firstboot.Phases() {
		s += fmt.Sprintf("\n%s: %s\n", p.Name, p.Text)
		for _, step := range p.Steps {
			s += fmt.Sprintf("  %-20s %s\n", step.Name, step.Text)
		}
	}
	return s + "\nExit codes: 0 done, 1 failed, 2 bad document or usage, 3 joining or waiting."
}

// machine is the server that the command works on, with progress on standard error.
func (c *cli) machine() firstboot.Machine {
	return firstboot.Machine{Root: c.root, Log: c.log, Progress: progress(c.log)}
}

// open finds out what it is.
func (c *cli) open() (*node.Node, error) { return c.machine().Open() }

// asExit gives the error of a bad document its exit code.
func asExit(err error) error {
	var invalid *cloudinit.InvalidError
	if errors.As(err, &invalid) {
		return exitError{exitUsage, err}
	}
	return err
}
