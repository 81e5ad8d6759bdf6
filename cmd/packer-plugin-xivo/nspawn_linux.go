package main

import (
	"github.com/hashicorp/packer-plugin-sdk/plugin"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn"
)

func registerNspawn(set *plugin.Set) { set.RegisterBuilder("nspawn", new(nspawn.Builder)) }
