//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config

package install

import (
	"cmp"
	"regexp"
	"strings"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
)

// Config is the provisioner's configuration.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// The version to install, as the mirror's archive names it but without
	// `xivo-`: for example `15.19`, `16.03` or `2018.16.00`. XiVO is to be had
	// from 14.18 on, Wazo from 16.16 to 19.09. Each wants its own release of
	// Debian: 7 up to 15.19, 8 up to 17.17 and 2018.13, 9 up to 2020.09, 10 up to
	// 2022.03, 11 up to 2024.04, and 12 after it; Wazo wants 9 from 18.01 on.
	XivoVersion string `mapstructure:"xivo_version" required:"true"`
	// Where the install script and the packages come from: the URL that has
	// `archive/` below it. Defaults to `http://mirror.xivo.solutions`, or
	// `http://mirror.wazo.community` for Wazo. With another one, the script is made
	// to use it too. The machine itself has to reach it.
	Mirror string `mapstructure:"mirror"`
	// The install script's path on the mirror. Defaults to `/xivo_install.sh`, or
	// `/fai/xivo-migration/wazo_install.sh` for Wazo.
	ScriptPath string `mapstructure:"script_path"`
	// How often apt tries again to fetch a file. Defaults to 3, also for 0.
	AptRetries int `mapstructure:"apt_retries"`
	// Take Debian's packages from archive.debian.org: /etc/apt/sources.list is
	// pointed at it wherever it names another host of debian.org, and apt accepts
	// package lists that have expired. By default that is done on the releases that
	// are only there, Debian 7 to 10. `true` does it on a newer one, `false` leaves
	// apt as it is. Options of a line, such as `[trusted=yes]` for a release whose
	// signing keys have expired, are kept.
	Archive config.Trilean `mapstructure:"archive"`
	// How long everything together may take. Defaults to `2h`.
	Timeout time.Duration `mapstructure:"timeout"`
	// Prefix the commands with `sudo -n`, for a connection that is not root's.
	Sudo bool `mapstructure:"sudo"`

	release release
	ctx     interpolate.Context
}

// What an option is where it is not set. Mirror and script depend on the
// version: see product.
const (
	DefaultAptRetries = 3
	DefaultTimeout    = 2 * time.Hour
)

// Both end up in commands, and the mirror in what the script runs as root: no
// credentials, no query, nothing that a shell or sed would read differently.
var (
	mirrorURL  = regexp.MustCompile(`^https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~-]+)*$`)
	scriptPath = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)+$`)
)

// Prepare reads and completes the configuration; the error names every field
// that is wrong.
func (c *Config) Prepare(raws ...any) error {
	err := config.Decode(c, &config.DecodeOpts{
		PluginType: "xivo.install", Interpolate: true, InterpolateContext: &c.ctx,
	}, raws...)
	if err != nil {
		return err
	}

	var problems configuration.Problems
	if c.XivoVersion == "" {
		problems.Addf("xivo_version is required: for example 16.03")
	} else if c.release, err = releaseOf(c.XivoVersion); err != nil {
		problems.Addf("xivo_version: %w", err)
	}

	c.Mirror = cmp.Or(c.Mirror, c.release.product.mirror)
	c.ScriptPath = cmp.Or(c.ScriptPath, c.release.product.script)
	c.AptRetries = cmp.Or(c.AptRetries, DefaultAptRetries)
	c.Timeout = cmp.Or(c.Timeout, DefaultTimeout)

	c.Mirror = strings.TrimRight(c.Mirror, "/")
	if c.Mirror != "" && !mirrorURL.MatchString(c.Mirror) {
		problems.Addf("mirror: must be an http or https URL of host, port and path, such as %s", productXiVO.mirror)
	}
	if c.ScriptPath != "" && !scriptPath.MatchString(c.ScriptPath) {
		problems.Addf("script_path %q: must be a path on the mirror, such as %s", c.ScriptPath, productXiVO.script)
	}
	if c.AptRetries < 0 {
		problems.Addf("apt_retries must not be negative")
	}
	if c.Timeout < 0 {
		problems.Addf("timeout must not be negative")
	}
	return problems.Err()
}

// fromArchive tells whether Debian's packages are to come from
// archive.debian.org.
func (c *Config) fromArchive() bool {
	if want := c.Archive.ToBoolPointer(); want != nil {
		return *want
	}
	return c.release.debian.archived()
}
