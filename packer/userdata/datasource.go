// Package userdata is the Packer data source xivo-user-data. It builds the
// cloud-init user data of a node from HCL and refuses what a node would refuse.
package userdata

import (
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/packer-plugin-sdk/hcl2helper"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/zclconf/go-cty/cty"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
)

// Datasource is the Packer data source.
type Datasource struct {
	config Config
}

var _ packersdk.Datasource = (*Datasource)(nil)

// Output is what a template gets.
type Output struct {
	// The document, starting with `#cloud-config`: for `cd_content`, for the
	// user data of a cloud, or to hand on. The secret is in it, and Packer has
	// no way for a plugin to say so: put it into a `local` that is `sensitive`
	// before you print it, and keep the files that you write readable for their
	// owner only.
	UserData string `mapstructure:"user_data"`
}

// ConfigSpec describes the configuration to Packer.
func (d *Datasource) ConfigSpec() hcldec.ObjectSpec { return d.config.FlatMapstructure().HCL2Spec() }

// OutputSpec describes the output to Packer.
func (d *Datasource) OutputSpec() hcldec.ObjectSpec { return new(Output).FlatMapstructure().HCL2Spec() }

// Configure checks the configuration.
func (d *Datasource) Configure(raws ...any) error { return d.config.Prepare(raws...) }

// Execute returns an Output. It spells every key of the document out, so that
// the same document means the same to a node of a later version.
func (d *Datasource) Execute() (cty.Value, error) {
	doc, err := d.config.document()
	if err != nil {
		return cty.NullVal(cty.EmptyObject), err
	}
	render := cloudinit.UserData
	if d.config.WriteFiles {
		render = cloudinit.UserDataFile
	}
	return hcl2helper.HCL2ValueFromConfig(Output{UserData: string(render(doc))}, d.OutputSpec()), nil
}
