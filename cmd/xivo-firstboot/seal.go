package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
)

func (c *cli) sealCommand() *cobra.Command {
	var list, last bool
	o := sealing.Options{Version: version}
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Take every identity out of this machine, before an image is made of it",
		Long: "Run inside the machine that is baked, as its last provisioner. Each operation is proved after it.\n" +
			"The manifest of what was done stays in the image and can be fetched; `seal --last` then removes the\n" +
			"SSH keys that the connection itself needs. Sealing again repeats every proof, tells what it found\n" +
			"and takes it out; the manifest keeps what an earlier seal took out.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if list {
				return c.listOperations()
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 15*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			if err := n.LockWait(ctx); err != nil {
				return err
			}
			if last {
				return sealing.Last(ctx, n, o)
			}
			m, err := sealing.Seal(ctx, n, o)
			if err != nil {
				return err
			}
			skipped, leftOut := 0, 0
			for _, op := range m.Operations {
				switch {
				case op.Skipped != "":
					skipped++
				case op.Disabled:
					leftOut++
				}
			}
			fmt.Fprintf(c.out, "sealed: %d operations done, %d skipped, %d left out, XiVO %s\n", len(m.Operations)-skipped-leftOut, skipped, leftOut, m.XiVO)
			return nil
		},
	}
	f := cmd.Flags()
	f.BoolVar(&list, "list", false, "list the operations")
	f.BoolVar(&last, "last", false, "end a seal: remove the SSH host keys and the build's key")
	f.BoolVar(&o.AllowConfigured, "allow-configured", false, "seal a XiVO that has passed its wizard")
	f.StringSliceVar(&o.Enable, "enable", nil, "do these operations only")
	f.StringSliceVar(&o.Disable, "disable", nil, "operations to leave out: what they would take out is then in every clone")
	return cmd
}

func (c *cli) listOperations() error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, op := range sealing.AllOperations() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", op.Name, op.Text, op.Counterpart)
	}
	return w.Flush()
}
