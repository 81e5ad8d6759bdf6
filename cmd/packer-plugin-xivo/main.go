// packer-plugin-xivo is a Packer plugin: the builder xivo-nspawn and the
// provisioner xivo-seal.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/packer-plugin-sdk/plugin"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/seal"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

func main() {
	set := plugin.NewSet()
	set.RegisterBuilder("nspawn", new(nspawn.Builder))
	set.RegisterProvisioner("seal", new(seal.Provisioner))
	set.SetVersion(version.Version)
	if err := set.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
