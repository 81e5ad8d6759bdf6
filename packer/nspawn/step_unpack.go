package nspawn

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/packer-plugin-sdk/multistep"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// stepUnpack unpacks a root tar and makes it boot on a BIOS. It has nothing to
// do for a disk image.
//
// Uses: stateSandbox.
type stepUnpack struct{ config *Config }

func (s *stepUnpack) Run(ctx context.Context, state multistep.StateBag) multistep.StepAction {
	if !isTar(s.config.SourceImage) {
		return multistep.ActionContinue
	}
	sandbox := sandboxOf(state)
	uiOf(state).Say("Unpacking " + s.config.SourceImage)
	err := sandbox.Run(ctx, "tar", "-C", rootDir, "--numeric-owner", "--xattrs", "--acls", "-xpf", s.config.SourceImage)
	if err == nil {
		err = makeBootable(ctx, sandbox)
	}
	if err != nil {
		return halt(state, err)
	}
	return multistep.ActionContinue
}

func (s *stepUnpack) Cleanup(multistep.StateBag) {}

// bootDir is where extlinux keeps its files.
const bootDir = "boot/extlinux"

const fstab = "LABEL=" + rootLabel + " / ext4 errors=remount-ro 0 1\n"

const extlinuxConf = `default linux
prompt 0
timeout 0
label linux
	linux %s
	initrd %s
	append root=LABEL=` + rootLabel + ` ro console=tty0 console=ttyS0,115200n8 net.ifnames=0
`

// makeBootable writes fstab and the boot loader.
func makeBootable(ctx context.Context, sandbox *machine.Sandbox) error {
	kernel, initrd, err := findKernel(sandbox.Path(rootDir))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(sandbox.Path(rootDir, bootDir), 0o755); err != nil {
		return fmt.Errorf("install the boot loader: %w", err)
	}
	for name, content := range map[string]string{
		"etc/fstab":                fstab,
		bootDir + "/extlinux.conf": fmt.Sprintf(extlinuxConf, kernel, initrd),
	} {
		if err := os.WriteFile(sandbox.Path(rootDir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("make the root bootable: %w", err)
		}
	}
	return sandbox.Run(ctx, "extlinux", "--install", filepath.Join(rootDir, bootDir))
}

// findKernel returns the kernel and its initrd as the boot loader finds them.
// Debian's links are preferred: they follow an upgrade of the kernel.
func findKernel(root string) (kernel, initrd string, err error) {
	for _, dir := range []string{"/", "/boot"} {
		kernel, initrd := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
		if isLink(root, kernel) && isLink(root, initrd) {
			return kernel, initrd, nil
		}
	}
	found, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return "", "", err
	}
	for _, name := range found {
		version := filepath.Base(name)[len("vmlinuz-"):]
		if _, err := os.Stat(filepath.Join(root, "boot/initrd.img-"+version)); err == nil {
			// One of several is a matter of the links above.
			return "/boot/vmlinuz-" + version, "/boot/initrd.img-" + version, nil
		}
	}
	return "", "", errors.New("the root tar has no kernel with an initrd in /boot, so it could not boot outside of this build: add a kernel package, such as linux-image-cloud-amd64")
}

// isLink says whether name below root is a relative link to a file. (An absolute
// one would be looked up on this host.)
func isLink(root, name string) bool {
	target, err := os.Readlink(filepath.Join(root, name))
	if err != nil || filepath.IsAbs(target) {
		return false
	}
	_, err = os.Stat(filepath.Join(root, name))
	return err == nil
}
