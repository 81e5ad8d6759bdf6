// Package version says which version of the plugin this is.
package version

import "github.com/hashicorp/packer-plugin-sdk/version"

// Version is what Packer sees, and what `packer plugins install` compares with
// required_plugins. Between releases it has the prerelease "dev".
var Version = version.NewPluginVersion("0.1.0", "", "")
