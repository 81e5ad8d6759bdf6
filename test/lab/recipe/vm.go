package recipe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Disk is the lab's XiVO on a disk that boots by itself, as people have one
// before they bake: it is configured, was run, and was never sealed.
type Disk struct {
	QCOW2 string
	// Key is the file of an SSH key with which root may log in, KeyPublic what
	// says so in an authorized_keys.
	Key, KeyPublic string
}

const diskTemplate = "test/lab/recipe/vm/disk.pkr.hcl"

// Disk returns it; it may be read only.
func (m *Maker) Disk(ctx context.Context) (Disk, error) {
	source, err := m.XiVOTar(ctx, Version)
	if err != nil {
		return Disk{}, err
	}
	key, err := m.bakeKey(ctx, source, diskTemplate)
	if err != nil {
		return Disk{}, err
	}
	const sshKey = "key"
	dir, err := cache.Make("disk", key, func(dir string) error {
		if err := m.run(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", filepath.Join(dir, sshKey)); err != nil {
			return err
		}
		public, err := os.ReadFile(filepath.Join(dir, sshKey+".pub"))
		if err != nil {
			return err
		}
		packer, err := m.Packer(ctx, dir)
		if err != nil {
			return err
		}
		err = packer.Run(ctx, "build",
			"-var", "source_image="+source,
			"-var", "output_directory="+filepath.Join(dir, outputDir),
			"-var", "authorized_key="+strings.TrimSpace(string(public)),
			filepath.Join(m.Repo, diskTemplate))
		if err != nil {
			return err
		}
		return keepOnly(dir, outputDir, sshKey, sshKey+".pub")
	})
	if err != nil {
		return Disk{}, err
	}
	public, err := os.ReadFile(filepath.Join(dir, sshKey+".pub"))
	return Disk{
		QCOW2:     filepath.Join(dir, outputDir, "xivo.qcow2"),
		Key:       filepath.Join(dir, sshKey),
		KeyPublic: strings.TrimSpace(string(public)),
	}, err
}

// BakeNspawn bakes an image of a disk with our builder, in an empty folder.
func (m *Maker) BakeNspawn(ctx context.Context, disk Disk, dir string) (Image, error) {
	packer, err := m.Packer(ctx, dir)
	if err != nil {
		return Image{}, err
	}
	return packer.bake(ctx, "nspawn", dir, "-var", "source_image="+disk.QCOW2)
}

// BakeQEMU bakes an image of a disk with the standard builder for QEMU, in an
// empty folder. The accelerator may be "": the template then decides itself.
func (m *Maker) BakeQEMU(ctx context.Context, disk Disk, dir, accelerator string) (_ Image, err error) {
	plugin, err := m.Tool(ctx, "packer-plugin-qemu")
	if err != nil {
		return Image{}, err
	}
	packer, err := m.Packer(ctx, dir)
	if err != nil {
		return Image{}, err
	}
	if err := packer.Install(ctx, plugin, "github.com/hashicorp/qemu"); err != nil {
		return Image{}, err
	}
	// In a network of its own: the builder forwards a port to the machine, on
	// all addresses.
	if packer.Sandbox, err = machine.NewSandbox(ctx); err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, packer.Sandbox.Close()) }()
	vars := []string{"-var", "source_image=" + disk.QCOW2, "-var", "ssh_private_key_file=" + disk.Key}
	if accelerator != "" {
		vars = append(vars, "-var", "accelerator="+accelerator)
	}
	return packer.bake(ctx, "qemu", dir, vars...)
}

// Accelerator is the one that the template for QEMU takes on this machine.
func (m *Maker) Accelerator(ctx context.Context) (string, error) {
	cmd := m.command(ctx, filepath.Join(m.Repo, "packer/templates/qemu/qemu.sh"))
	cmd.Stdout = nil
	out, err := cmd.Output()
	accelerator := strings.TrimSpace(string(out))
	if err == nil && accelerator != "kvm" && accelerator != "tcg" {
		err = fmt.Errorf("qemu.sh says %q", accelerator)
	}
	return accelerator, err
}

// Seed writes the seed of a node into a folder with the post-processor
// xivo-seed, and returns the command line that it shows for QEMU: that creates
// the node's disk from the image, unless it is there, and boots it.
func (m *Maker) Seed(ctx context.Context, dir, image, bridge string, n lab.Node) (commandLine string, err error) {
	// Short: the plugin's socket is in it, and its path has room for 107 bytes.
	home, err := os.MkdirTemp("", "xivo-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(home)
	packer, err := m.Packer(ctx, home)
	if err != nil {
		return "", err
	}
	// The user data have the secret of the mesh: not on a command line.
	out, err := packer.Output(ctx, []string{"PKR_VAR_user_data=" + string(n.UserData)}, "build",
		"-var", "image="+image,
		"-var", "bridge="+bridge,
		"-var", "output_directory="+dir,
		"-var", "hostname="+n.Name,
		"-var", "instance_id="+n.InstanceID,
		"-var", "address="+netip.PrefixFrom(n.Address, lab.Network.Bits()).String(),
		"-var", "gateway="+lab.HostAddress.String(),
		filepath.Join(m.Repo, "test/lab/recipe/vm/seed.pkr.hcl"))
	if err != nil {
		return "", err
	}
	const label = "QEMU:"
	for line := range strings.Lines(out) {
		if _, commandLine, found := strings.Cut(line, label); found {
			return strings.TrimSpace(commandLine), nil
		}
	}
	return "", fmt.Errorf("xivo-seed shows no command line for QEMU:\n%s", out)
}
