// packer-plugin-xivo is a Packer plugin: the builder xivo-nspawn, the
// provisioners xivo-install and xivo-seal, the data source xivo-user-data and
// the post-processor xivo-seed. The builder is there on Linux only.
package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/packer-plugin-sdk/plugin"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/install"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/seal"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/seediso"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/userdata"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

func main() {
	set := plugin.NewSet()
	registerNspawn(set)
	set.RegisterProvisioner("install", new(install.Provisioner))
	set.RegisterProvisioner("seal", new(seal.Provisioner))
	set.RegisterDatasource("user-data", new(userdata.Datasource))
	set.RegisterPostProcessor("seed", new(seediso.PostProcessor))
	set.SetVersion(version.Version)
	if err := set.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
