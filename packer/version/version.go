// Package version says which version of the plugin this is.
package version

import "github.com/hashicorp/packer-plugin-sdk/version"

// Version is what Packer sees and compares with required_plugins. Before a
// release it is the version to come, without a prerelease: to Packer, 0.1.0-dev
// is not ">= 0.1.0", which is what every template asks for.
var Version = version.NewPluginVersion("0.1.0", "", "")
