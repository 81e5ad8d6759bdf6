package nspawn

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepPreflight finds what is missing on this host, and a wrong source, before
// anything is made.
type stepPreflight struct{ config *Config }

func (s *stepPreflight) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	if os.Geteuid() != 0 {
		return halt(state, errors.New("the xivo-nspawn builder mounts a disk image and boots a machine: run Packer as root (sudo -E packer build ...)"))
	}
	if err := machine.Require(s.tools()...); err != nil {
		return halt(state, err)
	}
	if s.config.SourceChecksum != "" {
		uiOf(state).Say("Verifying the checksum of " + s.config.SourceImage)
		sum, err := parseChecksum(s.config.SourceChecksum)
		if err == nil {
			err = sum.verify(ctx, s.config.SourceImage)
		}
		if err != nil {
			return halt(state, err)
		}
	}
	return multistep.ActionContinue
}

func (s *stepPreflight) Cleanup(multistep.StateBag) {}

// tools are the programs that this build will run.
func (s *stepPreflight) tools() []machine.Tool {
	tools := []machine.Tool{
		machine.Nsenter, machine.Mount, machine.IP, machine.Nspawn,
		{Name: "sfdisk", Package: "fdisk"},
		{Name: "losetup", Package: "mount"},
	}
	if s.config.Network == NetworkUplink {
		tools = append(tools, machine.Slirp)
	}
	if isTar(s.config.SourceImage) {
		tools = append(tools,
			machine.Tool{Name: "tar", Package: "tar"},
			machine.Tool{Name: "mkfs.ext4", Package: "e2fsprogs"},
			machine.Tool{Name: "extlinux", Package: "extlinux"},
			machine.Tool{Name: mbrFile, Package: "syslinux-common"})
		switch { // tar runs it; gzip is in every Debian
		case strings.HasSuffix(s.config.SourceImage, ".zst"):
			tools = append(tools, machine.Tool{Name: "zstd", Package: "zstd"})
		case strings.HasSuffix(s.config.SourceImage, ".xz"):
			tools = append(tools, machine.Tool{Name: "xz", Package: "xz-utils"})
		}
	}
	if !isTar(s.config.SourceImage) {
		tools = append(tools, machine.Tool{Name: "blkid", Package: "util-linux"})
	}
	if !isTar(s.config.SourceImage) && s.config.diskSize > 0 {
		tools = append(tools, machine.Tool{Name: "resize2fs", Package: "e2fsprogs"})
	}
	if !isTar(s.config.SourceImage) || s.config.Format == FormatQCOW2 {
		tools = append(tools, machine.Tool{Name: "qemu-img", Package: "qemu-utils"})
	}
	return tools
}
