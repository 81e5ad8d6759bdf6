//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config

package seal

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/embedded"
)

// Config is the provisioner's configuration.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// A static Linux build of xivo-firstboot for the machine's architecture.
	// Defaults to the one that the plugin carries.
	FirstbootBinary string `mapstructure:"firstboot_binary"`
	// Seal a XiVO that has passed its wizard. Its IP address is then in places
	// that every clone will share; without this, such a machine is refused.
	AllowConfigured bool `mapstructure:"allow_configured"`
	// The only operations to do: see `xivo-firstboot seal --list`. Defaults to
	// all of them.
	Enable []string `mapstructure:"enable"`
	// Operations to leave out: see `xivo-firstboot seal --list`. What they would
	// have taken out is then in every clone. A choice with which clones would lack
	// something is refused: `kv-export` goes with `consul-state`, and `units` and
	// `uuid-database` with all that our first boot puts back.
	Disable []string `mapstructure:"disable"`
	// Where the manifest of the seal is written on this host: a file, or a folder
	// for it. Beside the image is a good place. Defaults to the current folder, and
	// a name with the source's in it, such as `xivo-seal-manifest-qemu.xivo.json`.
	ManifestFile string `mapstructure:"manifest_file"`
	// Where what was the machine's own (UUIDs, keys, tokens) is written on this host,
	// for `xivo-firstboot seal --prove IMAGE --values FILE`, which searches the image
	// for it: a file, or a folder for it. Nobody but you can read the file; it holds
	// secrets, so keep it away from the image, and remove it after the proof. By
	// default it is not written.
	ValuesFile string `mapstructure:"values_file"`
	// Prefix the commands with `sudo -n`, for a connection that is not root's.
	Sudo bool `mapstructure:"sudo"`

	ctx interpolate.Context
}

// manifestFile is where the manifest goes. A folder may be one that the builder
// makes, which is not there before the build.
func (c *Config) manifestFile() string { return c.file(c.ManifestFile, "xivo-seal-manifest") }

// valuesFile is where the values go.
func (c *Config) valuesFile() string { return c.file(c.ValuesFile, "xivo-seal-values") }

func (c *Config) file(name, otherwise string) string {
	if st, err := os.Stat(name); name == "" || strings.HasSuffix(name, "/") || err == nil && st.IsDir() {
		return filepath.Join(name, c.defaultFile(otherwise))
	}
	return name
}

// defaultFile tells the sources of one build apart.
func (c *Config) defaultFile(name string) string {
	if c.PackerBuildName != "" {
		name += "-" + strings.ReplaceAll(c.PackerBuilderType+"."+c.PackerBuildName, "/", "-")
	}
	return name + ".json"
}

// operationName is what an operation is called: nothing that a shell would
// read differently.
var operationName = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)

// Prepare reads and completes the configuration; the error names every field
// that is wrong.
func (c *Config) Prepare(raws ...any) error {
	err := config.Decode(c, &config.DecodeOpts{
		PluginType: "xivo.seal", Interpolate: true, InterpolateContext: &c.ctx,
	}, raws...)
	if err != nil {
		return err
	}

	var problems configuration.Problems
	switch {
	case c.FirstbootBinary != "":
		if st, err := os.Stat(c.FirstbootBinary); err != nil {
			problems.Addf("firstboot_binary: %w", err)
		} else if !st.Mode().IsRegular() {
			problems.Addf("firstboot_binary: %s is not a file", c.FirstbootBinary)
		}
	case len(embedded.Architectures()) == 0:
		problems.Addf("firstboot_binary is required: this plugin was built without xivo-firstboot")
	}
	for _, name := range slices.Concat(c.Enable, c.Disable) {
		if !operationName.MatchString(name) {
			problems.Addf("%q is not the name of an operation: see xivo-firstboot seal --list", name)
		}
	}
	return problems.Err()
}
