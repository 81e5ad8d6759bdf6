// Package lab runs several machines side by side: real Debian, systemd,
// cloud-init, PostgreSQL, RabbitMQ and Consul, on copies of one image that take
// no time to make, connected by a network of their own that nothing leaves.
//
// All of it lives in namespaces that end with this process, however it ends.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// The lab's network. We, and the users who sit before the nodes, are at
// HostAddress; the machines at what their seeds say.
var (
	Network     = netip.MustParsePrefix("10.77.0.0/24")
	HostAddress = netip.MustParseAddr("10.77.0.1")
)

const (
	bridge = "lab0"
	// top is where everything of the lab is in its sandbox: a tmpfs, so what
	// the machines write is gone with it.
	top = "/run/lab"
	// Beside the machines' folders; no machine has a name with a dot in front.
	imageRoot = top + "/.image"
)

// Lab is a set of machines on one image.
type Lab struct {
	sandbox *machine.Sandbox
	disk    string // the folders that every container's disk begins as, in mount's notation
	build   func(context.Context, Node) (computer, error)

	mu       sync.Mutex
	machines map[string]*Machine
}

// New makes a lab whose machines are copies of an image: a raw disk with a
// partition table and the root on its first partition, or a folder with the
// root itself. Layers are folders that lie over it, each over the one before.
// All of them are only read. The caller ends the lab with Close.
func New(ctx context.Context, image string, layers ...string) (_ *Lab, err error) {
	l, err := empty(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	l.build = l.container
	l.disk = imageRoot
	for _, layer := range layers {
		l.disk = layer + ":" + l.disk
	}

	info, err := os.Stat(image)
	if err != nil {
		return nil, fmt.Errorf("lab: the image: %w", err)
	}
	if err := os.MkdirAll(l.sandbox.Path(imageRoot), 0o755); err != nil {
		return nil, err
	}
	mount := []string{"mount", "--bind", "-o", "ro", image, imageRoot}
	if !info.IsDir() {
		offset, err := firstPartition(image)
		if err != nil {
			return nil, err
		}
		mount = []string{"mount", "-o", "ro,noload,loop,offset=" + strconv.FormatInt(offset, 10), image, imageRoot}
	}
	if err := l.sandbox.Run(ctx, mount...); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return l, nil
}

// empty makes a lab that has its network, and no machines.
func empty(ctx context.Context) (*Lab, error) {
	sandbox, err := machine.NewSandbox(ctx)
	if err != nil {
		return nil, err
	}
	l := &Lab{sandbox: sandbox, machines: map[string]*Machine{}}
	for _, argv := range [][]string{
		{"ip", "link", "add", bridge, "type", "bridge"},
		{"ip", "address", "add", netip.PrefixFrom(HostAddress, Network.Bits()).String(), "dev", bridge},
		{"ip", "link", "set", bridge, "up"},
	} {
		if err := sandbox.Run(ctx, argv...); err != nil {
			return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close())
		}
	}
	return l, nil
}

// firstPartition returns where the first partition of a disk with an MBR
// starts, in bytes.
func firstPartition(image string) (int64, error) {
	f, err := os.Open(image)
	if err != nil {
		return 0, fmt.Errorf("lab: the image: %w", err)
	}
	defer f.Close()
	const table, signature = 446, 510
	var mbr [512]byte
	if _, err := f.ReadAt(mbr[:], 0); err != nil {
		return 0, fmt.Errorf("lab: read the partition table of %s: %w", image, err)
	}
	entry := mbr[table : table+16]
	start := int64(entry[8]) | int64(entry[9])<<8 | int64(entry[10])<<16 | int64(entry[11])<<24
	if mbr[signature] != 0x55 || mbr[signature+1] != 0xaa || start == 0 {
		return 0, fmt.Errorf("lab: %s has no partition table: a raw disk image is needed", image)
	}
	return start * 512, nil
}

// Close ends the lab at once, machines and all, as a power cut would: nothing of
// their disks is kept anyway.
func (l *Lab) Close() error { return l.sandbox.Close() }

// Machines returns those that were started, in no order.
func (l *Lab) Machines() []*Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []*Machine
	for _, m := range l.machines {
		all = append(all, m)
	}
	return all
}

// Net is the lab's own network: the bridge, with HostAddress.
func (l *Lab) Net() Net { return Net{l.sandbox.Namespace("net")} }

// Dial connects to a machine from HostAddress, as a user's computer does. The
// address is an IP literal with a port.
func (l *Lab) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return l.Net().Dial(ctx, network, address)
}

// SaveLogs writes the journal and the console of every machine into a folder,
// for a person to look at after a failure. What cannot be had is left out and
// told in the error.
func (l *Lab) SaveLogs(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var errs []error
	for _, m := range l.Machines() {
		errs = append(errs, m.saveLogs(ctx, dir))
	}
	return errors.Join(errs...)
}
