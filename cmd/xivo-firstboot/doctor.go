package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
)

func (c *cli) doctorCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at everything that makes this node one of its mesh; change nothing",
		Long: "One line for each thing that is looked at: ok, warn (works, or mends itself), fail, or skip (it does not concern\n" +
			"this node), with what was found and what to do. Services that are down are told as such, and are no reason to stop looking. Exit code 1 when\n" +
			"anything fails.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			n, err := c.open()
			if err != nil {
				return err
			}
			defer n.Close()
			failed := 0
			firstboot.Examine(ctx, n, func(f converge.Finding) {
				if f.Level == converge.Fail {
					failed++
				}
				if asJSON {
					json.NewEncoder(c.out).Encode(f)
					return
				}
				fmt.Fprintf(c.out, "%-4s  %-20s  %s\n", f.Level, f.Check, f.Says)
			})
			if failed > 0 {
				return fmt.Errorf("%d checks failed: see the lines that begin with fail", failed)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per line")
	return cmd
}
