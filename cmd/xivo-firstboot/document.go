package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
)

func (c *cli) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE|-",
		Short: "Check a document, with line and column of every mistake",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			name := args[0]
			var raw []byte
			var err error
			if name == "-" {
				name = "standard input"
				raw, err = cloudinit.Read(c.in, name)
			} else {
				raw, err = readDocument(name)
			}
			if err != nil {
				return exitError{exitUsage, err}
			}
			if _, err := cloudinit.Parse(raw, name); err != nil {
				return exitError{exitUsage, err}
			}
			fmt.Fprintf(c.out, "%s is valid\n", name)
			return nil
		},
	}
}

func readDocument(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return cloudinit.Read(f, name)
}

func (c *cli) seedCommand() *cobra.Command {
	var node cloudinit.SeedNode
	var document, address, gateway string
	cmd := &cobra.Command{
		Use:   "seed FOLDER",
		Short: "Write the NoCloud seed of one node into a folder",
		Long: "Writes meta-data, user-data and network-config. Give the folder to the machine as a disk labelled CIDATA,\n" +
			"or put it at /var/lib/cloud/seed/nocloud. The same document serves all nodes of a mesh.",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			raw, err := readDocument(document)
			if err != nil {
				return exitError{exitUsage, err}
			}
			if _, err := cloudinit.Parse(raw, document); err != nil {
				return exitError{exitUsage, err}
			}
			node.UserData = raw
			if address != "" {
				if node.Address, err = netip.ParsePrefix(address); err != nil {
					return exitError{exitUsage, fmt.Errorf("--address: %w", err)}
				}
			}
			if gateway != "" {
				if node.Gateway, err = netip.ParseAddr(gateway); err != nil {
					return exitError{exitUsage, fmt.Errorf("--gateway: %w", err)}
				}
			}
			if err := cloudinit.Seed(args[0], node); err != nil {
				return err
			}
			fmt.Fprintf(c.out, "wrote %s\n", filepath.Join(args[0], "{meta-data,user-data,network-config}"))
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&document, "document", "", "the #cloud-config with the key xivo (required)")
	f.StringVar(&node.InstanceID, "instance-id", "", "a name that no other instance has (required)")
	f.StringVar(&node.Hostname, "hostname", "", "the node's host name (required)")
	f.StringVar(&address, "address", "", "the node's address with its prefix length, for example 192.168.1.124/24; DHCP without it")
	f.StringVar(&gateway, "gateway", "", "the default gateway")
	f.StringVar(&node.Interface, "interface", "eth0", "the network interface")
	for _, name := range []string{"document", "instance-id", "hostname"} {
		cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(c.out, "xivo-firstboot", version)
			return err
		},
	}
}
