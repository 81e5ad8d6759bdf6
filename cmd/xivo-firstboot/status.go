package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
)

func (c *cli) statusCommand() *cobra.Command {
	var asJSON, wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what this node is, and who is in its mesh",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			status, err := c.readStatus(cmd.Context())
			if err != nil {
				return err
			}
			deadline := time.NewTimer(timeout)
			defer deadline.Stop()
			again := time.NewTicker(200 * time.Millisecond)
			defer again.Stop()
			for wait && stateError(status) != nil {
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-deadline.C:
					wait = false
				case <-again.C:
					if status, err = c.readStatus(cmd.Context()); err != nil {
						return err
					}
				}
			}
			if err := c.printStatus(status, asJSON); err != nil {
				return err
			}
			return stateError(status)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the node is alone, joined or degraded")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "how long --wait waits")
	return cmd
}

func (c *cli) readStatus(ctx context.Context) (converge.Status, error) {
	n, err := c.open()
	if err != nil {
		return converge.Status{}, err
	}
	defer n.Close()
	return converge.ReadStatus(ctx, n), nil
}

func (c *cli) printStatus(s converge.Status, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		return e.Encode(s)
	}
	fmt.Fprintf(c.out, "%s  %s\n", s.State, s.Why)
	fmt.Fprintf(c.out, "%s  %s  XiVO %s  %s\n", s.Identity.Hostname, s.Identity.UUID, s.Version, s.Address)
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, p := range s.Peers {
		answer := "no answer"
		if p.Suspended {
			answer = "no answer for long: taken out of the searches"
		}
		if p.Answered {
			answer = fmt.Sprintf("answers in %d ms", p.Milliseconds)
		}
		fmt.Fprintf(w, "peer\t%s\t%s\t%s\tXiVO %s\t%s\n", p.Host, p.UUID, p.Address, p.Version, answer)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, name := range s.NotManaged {
		fmt.Fprintf(c.out, "not managed: %s is in Consul's WAN, and no member of the mesh\n", name)
	}
	for _, notice := range s.Notices {
		fmt.Fprintln(c.out, "notice:", notice)
	}
	for _, e := range s.Errors {
		fmt.Fprintln(c.out, "error:", e)
	}
	return nil
}
