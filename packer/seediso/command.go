package seediso

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/diskimage"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
)

// What a clone on a command line gets: enough for a small XiVO.
const (
	memoryMiB = 2048
	cpus      = 2
)

// disk is a disk image on this host.
type disk struct {
	path   string // absolute
	format diskimage.Format
}

// findDisk returns the first disk image of an artifact.
func findDisk(artifact packersdk.Artifact) (disk, bool) {
	for _, name := range artifact.Files() {
		if d, err := openDisk(name); err == nil && d.format != diskimage.Unknown {
			return d, true
		}
	}
	return disk{}, false
}

// openDisk looks at the content of a file.
func openDisk(name string) (disk, error) {
	format, err := diskimage.FormatOf(name)
	if err != nil {
		return disk{}, err
	}
	path, err := filepath.Abs(name)
	return disk{path, format}, err
}

// clone is a machine that the command lines boot.
type clone struct {
	name   string
	id     uuid.UUID // DMI UUID: with the instance id, it tells first boot that this is another machine
	image  disk      // only read: the clone gets a copy
	disk   string    // path of the copy
	seed   string    // path of the seed
	bridge string    // "": the network that QEMU and libvirt have by default
}

// uuidNamespace is that of the DMI UUIDs, which are derived from instance ids: the
// same instance has the same DMI UUID each time the command lines are shown.
var uuidNamespace = uuid.MustParse("5f1f3c0e-6a0a-4f0e-9b57-3f6f6e0c8a11")

func newClone(hostname, instance, seed, bridge string, image disk) clone {
	return clone{
		name:  hostname,
		id:    uuid.NewSHA1(uuidNamespace, []byte(instance)),
		image: image,
		// Another instance that takes a host name over starts from the image.
		disk:   filepath.Join(filepath.Dir(seed), instance+".qcow2"),
		seed:   seed,
		bridge: bridge,
	}
}

// mac is the hardware address, derived from the DMI UUID: QEMU's default is the
// same for all machines.
func (c clone) mac() string {
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", c.id[0], c.id[1], c.id[2])
}

// createDisk makes the disk of the clone, unless it exists. It is a copy rather
// than an overlay on the image, which the next bake may replace: an overlay is
// valid on the image that it was made for only. The disk has its name once it is
// whole, and only its owner may read it: a node writes the secret of the mesh to
// it.
func (c clone) createDisk() string {
	part := c.disk + ".part"
	return shell.Quote("test", "-e", c.disk) + " || ( umask 077 && " +
		shell.Quote("qemu-img", "convert", "-f", string(c.image.format), "-O", "qcow2", c.image.path, part) + " && " +
		shell.Quote("mv", part, c.disk) + " )"
}

// show tells the command lines that create the clone's disk and boot it.
func (c clone) show(ui packersdk.Ui) {
	if _, err := os.Lstat(c.disk); err == nil {
		ui.Say(fmt.Sprintf("Its disk %s is there already, and stays what it is: for a machine from this image, set another instance_id", c.disk))
	}
	create := c.createDisk() + " && "
	ui.Say("QEMU:    " + create + c.qemu())
	ui.Say("libvirt: " + create + c.virtInstall())
}

// qemu boots the clone in the foreground, with its serial port as the console.
// The seed is a disk, here and for libvirt, since kernels for clouds lack the
// controllers of CD-ROMs; cloud-init finds it by its label.
func (c clone) qemu() string {
	nic := "user"
	if c.bridge != "" {
		nic = "bridge,br=" + c.bridge
	}
	return shell.Quote("qemu-system-x86_64", "-name", c.name, "-uuid", c.id.String(),
		"-machine", "pc", "-accel", "kvm", "-accel", "tcg", "-m", fmt.Sprint(memoryMiB), "-smp", fmt.Sprint(cpus),
		"-drive", "file="+c.disk+",format=qcow2,if=virtio",
		"-drive", "file="+c.seed+",format=raw,if=virtio,readonly=on",
		"-nic", nic+",model=virtio-net-pci,mac="+c.mac(),
		"-nographic")
}

// virtInstall defines the clone in libvirt and boots it.
func (c clone) virtInstall() string {
	network := "network=default"
	if c.bridge != "" {
		network = "bridge=" + c.bridge
	}
	return shell.Quote("virt-install", "--name", c.name, "--uuid", c.id.String(), "--import",
		"--memory", fmt.Sprint(memoryMiB), "--vcpus", fmt.Sprint(cpus), "--os-variant", "generic",
		"--disk", "path="+c.disk+",format=qcow2,bus=virtio",
		"--disk", "path="+c.seed+",format=raw,bus=virtio,readonly=on",
		"--network", network+",model=virtio,mac="+c.mac(),
		"--noautoconsole")
}
