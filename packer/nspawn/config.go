//go:generate go tool packer-sdc mapstructure-to-hcl2 -type Config

package nspawn

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/common"
	"github.com/hashicorp/packer-plugin-sdk/template/config"
	"github.com/hashicorp/packer-plugin-sdk/template/interpolate"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/configuration"
)

// Values of Config.Network.
const (
	NetworkUplink = "uplink"
	NetworkNone   = "none"
)

// Values of Config.Format.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// Config is the builder's configuration.
type Config struct {
	common.PackerConfig `mapstructure:",squash"`

	// The machine to start from: a disk image (raw or qcow2, told apart by its
	// content), with a GPT, an MBR or no partition table at all, that has the
	// whole root on one file system (no LVM, LUKS or RAID, and /boot not apart);
	// or a tar of a Debian root with a kernel (`.tar`, `.tar.gz`, `.tgz`,
	// `.tar.xz` or `.tar.zst`). It is not changed.
	SourceImage string `mapstructure:"source_image" required:"true"`
	// SHA-256 or SHA-512 of the source image: `sha256:<hex>` or `sha512:<hex>`.
	// Without it the source is taken as it is.
	SourceChecksum string `mapstructure:"source_checksum"`
	// Folder for the result. It must not exist, or `packer build -force` empties
	// it; it is removed when the build fails. Defaults to `output-<name of the build>`.
	OutputDirectory string `mapstructure:"output_directory"`
	// Name of the image, without an extension. Defaults to the name of the build.
	ImageName string `mapstructure:"image_name"`
	// `qcow2` (compressed with zstd; QEMU 5.1 or later reads it) or `raw`. Defaults to `qcow2`.
	Format string `mapstructure:"format"`
	// Size of the disk, for example `8G` (powers of 1024). A disk image is grown
	// to it, its last partition included, never shrunk. Defaults to `8G` for a
	// root tar and to the source's own size for a disk image.
	DiskSize string `mapstructure:"disk_size"`
	// `uplink`: the machine reaches what this host reaches, through a user-space
	// network stack, with no change to the host's firewall or forwarding. `none`:
	// loopback only. Defaults to `uplink`.
	Network string `mapstructure:"network"`
	// A folder of this host that keeps the packages that apt downloads in the
	// machine, for the next build. It is made when it is missing. Nothing of it
	// goes into the image, and `apt-get clean` in the machine empties it. By
	// default, nothing is kept.
	AptCache string `mapstructure:"apt_cache"`
	// How long the machine may take to boot. Defaults to `5m`.
	BootTimeout time.Duration `mapstructure:"boot_timeout"`
	// How long it may take to power off. Defaults to `2m`.
	ShutdownTimeout time.Duration `mapstructure:"shutdown_timeout"`

	ctx      interpolate.Context
	diskSize int64 // bytes; 0 = as the source
}

// defaultTarDiskSize holds a XiVO and room to install more.
const defaultTarDiskSize = 8 << 30

// Prepare reads and completes the configuration; the error names every field
// that is wrong.
func (c *Config) Prepare(raws ...any) ([]string, error) {
	err := config.Decode(c, &config.DecodeOpts{
		PluginType: BuilderID, Interpolate: true, InterpolateContext: &c.ctx,
	}, raws...)
	if err != nil {
		return nil, err
	}

	c.setDefaults()

	var problems configuration.Problems
	c.checkSource(&problems)
	c.checkResult(&problems)
	if c.Network != NetworkUplink && c.Network != NetworkNone {
		problems.Addf("network %q: must be %s or %s", c.Network, NetworkUplink, NetworkNone)
	}
	if c.BootTimeout < 0 || c.ShutdownTimeout < 0 {
		problems.Addf("boot_timeout and shutdown_timeout must not be negative")
	}
	c.makeAbsolute(&problems)
	c.checkOutsideOutput(&problems)
	return nil, problems.Err()
}

func (c *Config) setDefaults() {
	name := cmp.Or(c.PackerBuildName, "xivo")
	c.OutputDirectory = cmp.Or(c.OutputDirectory, "output-"+name)
	c.ImageName = cmp.Or(c.ImageName, name)
	c.Format = cmp.Or(c.Format, FormatQCOW2)
	c.Network = cmp.Or(c.Network, NetworkUplink)
	c.BootTimeout = cmp.Or(c.BootTimeout, 5*time.Minute)
	c.ShutdownTimeout = cmp.Or(c.ShutdownTimeout, 2*time.Minute)
}

// checkSource checks what the build starts from.
func (c *Config) checkSource(problems *configuration.Problems) {
	switch st, err := os.Stat(c.SourceImage); {
	case c.SourceImage == "":
		problems.Addf("source_image is required: a disk image (raw, qcow2) or the tar of a Debian root")
	case err != nil:
		problems.Addf("source_image: %w", err)
	case !st.Mode().IsRegular():
		problems.Addf("source_image: %s is not a file", c.SourceImage)
	}
	if c.SourceChecksum != "" {
		if _, err := parseChecksum(c.SourceChecksum); err != nil {
			problems.Addf("source_checksum: %w", err)
		}
	}
}

// checkResult checks what the image will be, and sets diskSize.
func (c *Config) checkResult(problems *configuration.Problems) {
	if c.Format != FormatQCOW2 && c.Format != FormatRaw {
		problems.Addf("format %q: must be %s or %s", c.Format, FormatQCOW2, FormatRaw)
	}
	if filepath.Base(c.ImageName) != c.ImageName || strings.HasPrefix(c.ImageName, ".") {
		problems.Addf("image_name %q: must be a file name", c.ImageName)
	}
	if c.DiskSize != "" {
		var err error
		if c.diskSize, err = parseSize(c.DiskSize); err != nil {
			problems.Addf("disk_size: %w", err)
		}
	} else if isTar(c.SourceImage) {
		c.diskSize = defaultTarDiskSize
	}
}

// makeAbsolute completes the paths: commands of the build run elsewhere than in
// the current folder.
func (c *Config) makeAbsolute(problems *configuration.Problems) {
	for _, path := range []*string{&c.SourceImage, &c.OutputDirectory, &c.AptCache} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			problems.Addf("%s: %w", *path, err)
		}
		*path = abs
	}
}

// checkOutsideOutput keeps what is the user's out of the output directory, which
// is emptied before the source is read, and removed after a failure.
func (c *Config) checkOutsideOutput(problems *configuration.Problems) {
	for _, kept := range []struct{ setting, path string }{
		{"source_image", c.SourceImage}, {"apt_cache", c.AptCache},
	} {
		if kept.path != "" && isInside(kept.path, c.OutputDirectory) {
			problems.Addf("%s: %s is in output_directory (%s), which is emptied by packer build -force and removed when a build fails: keep it elsewhere", kept.setting, kept.path, c.OutputDirectory)
		}
	}
}

// imagePath is where the result goes.
func (c *Config) imagePath() string {
	return filepath.Join(c.OutputDirectory, c.ImageName+"."+c.Format)
}

// workPath is the raw disk that the machine runs on. It is the result itself
// where that is raw.
func (c *Config) workPath() string {
	if c.Format == FormatRaw {
		return c.imagePath()
	}
	return filepath.Join(c.OutputDirectory, "."+c.ImageName+".work")
}

// isInside says whether a file or folder is below a folder, or is that folder, by
// its path as written or with the links followed. Both paths are absolute.
func isInside(name, folder string) bool {
	in := func(name, folder string) bool {
		path, err := filepath.Rel(folder, name)
		return err == nil && filepath.IsLocal(path)
	}
	return in(name, folder) || in(realPath(name), realPath(folder))
}

// realPath follows the links in as much of an absolute path as there is.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil || path == "/" {
		return real
	}
	return filepath.Join(realPath(filepath.Dir(path)), filepath.Base(path))
}

func isTar(name string) bool {
	for _, suffix := range []string{".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// minDiskSize is what a partition table, a file system and its journal need.
const minDiskSize = 64 << 20

// parseSize reads "8G" and the like; powers of 1024, no unit means bytes.
func parseSize(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToUpper(s), "KMGTIB")
	shift, known := map[string]int{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[strings.TrimSuffix(strings.ToUpper(s[len(digits):]), "IB")]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !known || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size (expected for example 8G)", s)
	}
	n <<= shift
	if n < minDiskSize || n%sector != 0 {
		return 0, fmt.Errorf("%q: must be at least 64M and a multiple of %d bytes", s, sector)
	}
	return n, nil
}

var errChecksumForm = errors.New("expected sha256:<64 hex digits> or sha512:<128 hex digits>")
