package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

func (c *cli) secretCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "secret",
		Short: "Print a new secret for a mesh",
		Long: "Prints one secret of 125 random bits, another one each time, on one line. Write it into the document of\n" +
			"every node of a mesh (`secret`), or into a file that only root may read (`secret_file`). Whoever has it\n" +
			"can join the mesh and open all that its nodes share; it is kept nowhere else.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(c.out, secret.New().Reveal())
			return err
		},
	}
}
