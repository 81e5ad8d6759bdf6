// Package configuration is what the configurations of the plugin's components
// have in common.
package configuration

import (
	"fmt"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// Unknown is what Packer puts in the place of a text that it does not know yet,
// such as the output of a data source while it validates.
const Unknown = "<unknown>"

// Problems collects what is wrong with a configuration, so that one run of
// Packer tells a user all of it. The zero value has none.
type Problems struct {
	errs *packersdk.MultiError
}

// Addf adds a problem, with the arguments of fmt.Errorf. It begins with the
// attribute's name in HCL and has no secret in it.
func (p *Problems) Addf(format string, args ...any) {
	p.errs = packersdk.MultiErrorAppend(p.errs, fmt.Errorf(format, args...))
}

// Err returns all problems in the order in which they were added, as a
// *packersdk.MultiError, or nil when there are none.
func (p *Problems) Err() error {
	if p.errs == nil {
		return nil
	}
	return p.errs
}
