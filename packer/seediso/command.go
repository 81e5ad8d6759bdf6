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

// machine is a clone on a command line.
type machine struct {
	name   string
	id     uuid.UUID // the DMI UUID, a second sign that it is another machine
	image  disk      // only read: the clone gets a copy
	disk   string
	seed   string
	bridge string
}

// uuids derives the DMI UUID from the instance id.
var uuids = uuid.MustParse("5f1f3c0e-6a0a-4f0e-9b57-3f6f6e0c8a11")

func newMachine(hostname, instance, seed, bridge string, image disk) machine {
	return machine{
		name:  hostname,
		id:    uuid.NewSHA1(uuids, []byte(instance)),
		image: image,
		// Another instance that takes a host name over starts from the image.
		disk:   filepath.Join(filepath.Dir(seed), instance+".qcow2"),
		seed:   seed,
		bridge: bridge,
	}
}

// mac is the hardware address: QEMU would give the same to each machine.
func (m machine) mac() string {
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", m.id[0], m.id[1], m.id[2])
}

// createDisk makes the disk of the clone, unless the clone was there before. It
// is a copy, not a layer over the image: the next bake may put another image in
// that place, and what is written over one image is nothing over another. It has
// its name only once it is whole, and is its owner's only: a node writes the
// secret of the mesh to it.
func (m machine) createDisk() string {
	part := m.disk + ".part"
	return shell.Quote("test", "-e", m.disk) + " || ( umask 077 && " +
		shell.Quote("qemu-img", "convert", "-f", string(m.image.format), "-O", "qcow2", m.image.path, part) + " && " +
		shell.Quote("mv", part, m.disk) + " )"
}

// show tells the command lines that create the clone's disk and boot it.
func (m machine) show(ui packersdk.Ui) {
	if _, err := os.Lstat(m.disk); err == nil {
		ui.Say(fmt.Sprintf("Its disk %s is there already, and stays what it is: for a machine from this image, set another instance_id", m.disk))
	}
	create := m.createDisk() + " && "
	ui.Say("QEMU:    " + create + m.qemu())
	ui.Say("libvirt: " + create + m.virtInstall())
}

// The seed is a disk for both, since kernels for clouds lack the controllers of
// CD-ROMs; cloud-init finds it by its label.

// qemu boots the clone in the foreground, with its serial port as the console.
func (m machine) qemu() string {
	nic := "user"
	if m.bridge != "" {
		nic = "bridge,br=" + m.bridge
	}
	return shell.Quote("qemu-system-x86_64", "-name", m.name, "-uuid", m.id.String(),
		"-machine", "pc", "-accel", "kvm", "-accel", "tcg", "-m", fmt.Sprint(memoryMiB), "-smp", fmt.Sprint(cpus),
		"-drive", "file="+m.disk+",format=qcow2,if=virtio",
		"-drive", "file="+m.seed+",format=raw,if=virtio,readonly=on",
		"-nic", nic+",model=virtio-net-pci,mac="+m.mac(),
		"-nographic")
}

// virtInstall hands the clone to libvirt.
func (m machine) virtInstall() string {
	network := "network=default"
	if m.bridge != "" {
		network = "bridge=" + m.bridge
	}
	return shell.Quote("virt-install", "--name", m.name, "--uuid", m.id.String(), "--import",
		"--memory", fmt.Sprint(memoryMiB), "--vcpus", fmt.Sprint(cpus), "--os-variant", "generic",
		"--disk", "path="+m.disk+",format=qcow2,bus=virtio",
		"--disk", "path="+m.seed+",format=raw,bus=virtio,readonly=on",
		"--network", network+",model=virtio,mac="+m.mac(),
		"--noautoconsole")
}
