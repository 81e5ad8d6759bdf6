package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/disk"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
)

func (c *cli) sealCommand() *cobra.Command {
	var list, last bool
	var prove, values string
	o := sealing.Options{Version: version}
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Take every identity out of this machine, before an image is made of it",
		Long: "Run inside the machine that is baked, as its last provisioner. Each operation is proved after it.\n" +
			"The manifest of what was done stays in the image and can be fetched; `seal --last` then removes the\n" +
			"SSH keys that the connection itself needs. Sealing again repeats every proof, tells what it found\n" +
			"and takes it out; the manifest keeps what an earlier seal took out.\n\n" +
			"With --values, the seal first writes what is this machine's own (UUIDs, keys, tokens) to a file in\n" +
			"memory, below /run: fetch it, remove it before `seal --last`, and keep it as a secret, outside the image.\n" +
			"Elsewhere, `seal --prove IMAGE --values FILE` then searches the raw disk for each of these values, as\n" +
			"text, as bytes and in base64, and fails where one is found. It tells their names and places, never a\n" +
			"value. An image in another format is written as a raw one, sparse, below $TMPDIR first.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case list:
				return c.listOperations()
			case prove != "":
				return c.prove(cmd.Context(), prove, values)
			case values != "":
				if err := remains.InMemory(values); err != nil {
					return exitError{exitUsage, err}
				}
				o.KeepValues = func(v remains.Values) error { return v.Write(values) }
			}
			// Each operation has its own deadline.
			ctx := cmd.Context()
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
	f.StringVar(&values, "values", "", "a file below /run for what is this machine's own; with --prove, the file that was made so")
	f.StringVar(&prove, "prove", "", "search a disk or an image for the values of --values, or of the standard input; change nothing")
	f.BoolVar(&o.AllowConfigured, "allow-configured", false, "seal a XiVO that has passed its wizard")
	f.StringSliceVar(&o.Enable, "enable", nil, "do these operations only")
	f.StringSliceVar(&o.Disable, "disable", nil, "operations to leave out: what they would take out is then in every clone")
	cmd.MarkFlagsMutuallyExclusive("list", "last", "prove")
	for _, other := range []string{"allow-configured", "enable", "disable"} {
		cmd.MarkFlagsMutuallyExclusive("prove", other)
	}
	cmd.MarkFlagsMutuallyExclusive("last", "values")
	return cmd
}

// tellEvery is how often a long search says how far it came.
const tellEvery = 5 * time.Second

// prove searches a disk for what its original had. Found is failed.
func (c *cli) prove(ctx context.Context, image, values string) error {
	v, err := c.readValues(values)
	if err != nil {
		return exitError{exitUsage, err}
	}
	began := time.Now()
	told := began
	proof, err := remains.Prove(ctx, image, v, func(r disk.Read) {
		if time.Since(told) >= tellEvery {
			told = time.Now()
			c.log.Info("searching", "percent", 100*r.At/r.Of, "MiB", r.At>>20)
		}
	})
	if err != nil {
		return fmt.Errorf("prove: %w", err)
	}
	for _, name := range proof.Short {
		fmt.Fprintf(c.out, "not searched for, since it is too short: %s\n", name)
	}
	for _, found := range proof.Found {
		fmt.Fprintln(c.out, "found:", found)
	}
	fmt.Fprintf(c.out, "searched %s for %d values: %d MiB, of which %d MiB are data, in %s\n",
		image, v.Len()-len(proof.Short), proof.Read.Of>>20, proof.Read.Data>>20, time.Since(began).Round(100*time.Millisecond))
	if len(proof.Found) > 0 {
		return errors.New("prove: the image holds what is its original's own: make no clones of it")
	}
	return nil
}

func (c *cli) readValues(file string) (remains.Values, error) {
	from, name := c.in, "standard input"
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return remains.Values{}, err
		}
		defer f.Close()
		from, name = f, file
	}
	v, err := remains.Decode(from)
	if err != nil {
		return v, fmt.Errorf("%s: %w", name, err)
	}
	return v, nil
}

func (c *cli) listOperations() error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	for _, op := range sealing.AllOperations() {
		fmt.Fprintf(w, "%s\t%s\t%s\n", op.Name, op.Text, op.Counterpart)
	}
	return w.Flush()
}
