package recipe

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// basePackages is Debian 12 with the services that XiVO takes from Debian. The
// dependencies come by themselves, recommendations do not.
var basePackages = []string{
	"ca-certificates", "cloud-init", "curl", "dbus", "ifupdown", "initramfs-tools", "iproute2", "iptables",
	"iputils-ping", "isc-dhcp-client", "kmod", "linux-image-cloud-amd64", "locales", "logrotate", "nano-tiny",
	"netbase", "openssh-server", "openssl", "postgresql", "postgresql-contrib", "procps", "python3",
	"rabbitmq-server", "sudo", "systemd", "systemd-sysv", "udev",
}

// baseOptions: no documentation (half of the files), and nothing of the build
// that a machine would have to forget.
var baseOptions = []string{
	"--mode=root", "--format=tar", "--variant=minbase",
	"--aptopt=APT::Install-Recommends false",
	"--dpkgopt=path-exclude=/usr/share/doc/*",
	"--dpkgopt=path-exclude=/usr/share/man/*",
	"--dpkgopt=path-exclude=/usr/share/locale/*",
	"--aptopt=Acquire::Retries 5",
	"--customize-hook=chroot \"$1\" systemctl mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer",
}

var baseSources = []string{
	"deb http://deb.debian.org/debian bookworm main",
	"deb http://deb.debian.org/debian bookworm-updates main",
	"deb http://deb.debian.org/debian-security bookworm-security main",
}

// Base returns a folder with base.tar, a Debian that never ran, and root, the
// same unpacked. Neither may be written to: mount an overlay.
func (m *Maker) Base(ctx context.Context) (string, error) {
	recipe := []string{strings.Join(basePackages, ","), strings.Join(baseOptions, "\n"), strings.Join(baseSources, "\n")}
	return cache.Make("base", cache.NewKey(recipe...), func(dir string) error {
		tar := filepath.Join(dir, "base.tar")
		args := append([]string{"--include=" + recipe[0]}, baseOptions...)
		args = append(append(args, "bookworm", tar), baseSources...)
		// In namespaces of its own, so that a kill takes along all that it runs
		// and has mounted.
		args = append([]string{"--mount", "--pid", "--mount-proc", "--fork", "--kill-child", "env", "TMPDIR=" + dir, "mmdebstrap"}, args...)
		if err := m.run(ctx, "unshare", args...); err != nil {
			return err
		}
		root := filepath.Join(dir, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			return err
		}
		return m.run(ctx, "tar", "--extract", "--file="+tar, "--directory="+root,
			"--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-permissions")
	})
}
