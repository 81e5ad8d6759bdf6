package recipe

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// hostPackages is what the lab and the builder need on a Debian 12.
var hostPackages = []string{
	"ca-certificates",
	"debian-archive-keyring",
	"e2fsprogs",
	"extlinux",
	"fdisk",
	"iproute2",
	"iptables",
	"mmdebstrap",
	"mount",
	"openssh-client",
	"qemu-utils",
	"slirp4netns",
	"syslinux-common",
	"systemd-container",
	"util-linux",
	"zstd",
}

// vmPackages are what virtual machines need besides.
var vmPackages = []string{"qemu-system-x86"}

// Host installs the Debian packages that are missing on this machine. It needs
// root and starts no service: for apt, this machine has no service manager.
func (m *Maker) Host(ctx context.Context) error { return m.install(ctx, hostPackages) }

// VMHost does what Host does, for a lab of virtual machines.
func (m *Maker) VMHost(ctx context.Context) error {
	return m.install(ctx, slices.Concat(hostPackages, vmPackages))
}

func (m *Maker) install(ctx context.Context, packages []string) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the lab makes namespaces and mounts file systems: run it as root")
	}
	missing := missingPackages(ctx, packages)
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintf(m.Log, "installing %s\n", strings.Join(missing, " "))
	if err := m.apt(ctx, "update"); err != nil {
		return err
	}
	if err := m.apt(ctx, append([]string{"install", "--no-install-recommends", "--yes"}, missing...)...); err != nil {
		return fmt.Errorf("install the packages that the lab needs: %w", err)
	}
	if missing = missingPackages(ctx, packages); len(missing) > 0 {
		return fmt.Errorf("apt-get succeeded, and %s still missing", strings.Join(missing, ", "))
	}
	return nil
}

// apt runs apt-get in a mount namespace where /run/systemd is empty: that is
// how maintainer scripts tell whether there are services to start.
func (m *Maker) apt(ctx context.Context, args ...string) error {
	const hidden = `if [ -d /run/systemd ]; then mount -t tmpfs none /run/systemd; fi; exec apt-get -q "$@"`
	return m.run(ctx, "unshare", append([]string{"--mount", "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8",
		"sh", "-ec", hidden, "apt-get"}, args...)...)
}

func missingPackages(ctx context.Context, packages []string) []string {
	var missing []string
	for _, name := range packages {
		out, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat=${db:Status-Status}", name).Output()
		if err != nil || string(out) != "installed" {
			missing = append(missing, name)
		}
	}
	return missing
}
