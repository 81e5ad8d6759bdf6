package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Net is a network of the lab as a process in it has it: that of the bridge, of a
// machine or of a neighbour.
type Net struct{ file string }

// within calls f in the network, on a thread that is nobody else's meanwhile: a
// socket belongs to the namespace that its thread is in when it is made.
func (n Net) within(f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer own.Close()
	theirs, err := os.Open(n.file)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: the lab is closed, or the machine is off: %w", err)
	}
	defer theirs.Close()
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("lab: enter the lab's network: %w", err)
	}
	done := f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		// A thread that stays locked ends with its goroutine, and is not used
		// for anything else.
		return errors.Join(done, fmt.Errorf("lab: come back from the lab's network: %w", err))
	}
	runtime.UnlockOSThread()
	return done
}

// Dial connects to an IP literal with a port. The zone of an IPv6 address is a number.
func (n Net) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("lab: dial: %w", err)
	}
	failed := n.within(func() error {
		c, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
		return nil
	})
	if failed != nil {
		return nil, failed
	}
	return c, err
}

// Listen listens on TCP at an IP literal with a port.
func (n Net) Listen(address string) (l net.Listener, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("lab: listen: %w", err)
	}
	err = n.within(func() error {
		l, err = net.Listen("tcp", address)
		return err
	})
	return l, err
}

// Frame is what came in or went out by an interface.
type Frame struct {
	At time.Time
	// Sent: it went out; else it came in.
	Sent bool
	// Packet begins with the header of IP, ARP or whatever else Type says.
	Packet []byte
	Type   uint16 // as in Ethernet
	// Tunnel: the interface has no link layer, as that of a tunnel.
	Tunnel bool
}

// Capture is all that the interfaces of a network carry, from its beginning to Stop.
type Capture struct {
	socket int
	stop   chan struct{}
	done   chan struct{}
	frames []Frame
	err    error
}

const (
	everyProtocol = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	captureBuffer = 64 << 20
)

// Capture begins to keep what every interface of the network carries, also of those
// that come later.
func (n Net) Capture() (*Capture, error) {
	c := &Capture{stop: make(chan struct{}), done: make(chan struct{})}
	err := n.within(func() (err error) {
		// Datagrams: without the link's header.
		c.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, everyProtocol)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: capture: %w", err)
	}
	err = errors.Join(
		unix.SetsockoptInt(c.socket, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, captureBuffer),
		// It looks that often whether it is to stop.
		unix.SetsockoptTimeval(c.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}))
	if err != nil {
		unix.Close(c.socket)
		return nil, fmt.Errorf("lab: capture: %w", err)
	}
	go c.read()
	return c, nil
}

func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, 1<<17)
	for {
		size, from, err := unix.Recvfrom(c.socket, buf, 0)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR:
			select {
			case <-c.stop:
				return
			default:
			}
			continue
		case err != nil:
			c.err = err
			return
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if !ok {
			continue
		}
		c.frames = append(c.frames, Frame{
			At: time.Now(), Sent: link.Pkttype == unix.PACKET_OUTGOING, Packet: append([]byte(nil), buf[:size]...),
			Type: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, link.Protocol)), Tunnel: link.Hatype == unix.ARPHRD_NONE,
		})
	}
}

// Stop returns all of it once the wire has been quiet for a moment. That the kernel
// had to leave something out is an error.
func (c *Capture) Stop() ([]Frame, error) {
	close(c.stop)
	<-c.done
	defer unix.Close(c.socket)
	stats, err := unix.GetsockoptTpacketStats(c.socket, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		err = fmt.Errorf("the kernel left out %d of %d", stats.Drops, stats.Packets)
	}
	if err = errors.Join(c.err, err); err != nil {
		return nil, fmt.Errorf("lab: capture: %w", err)
	}
	return c.frames, nil
}

// Neighbour is somebody else on the lab's network: addresses, routes and sockets of
// its own, and no disk.
type Neighbour struct {
	Name string
	Net
	lab *Lab
}

// Neighbour puts somebody on the lab's network, with these addresses on eth0. It lasts
// as long as the lab.
func (l *Lab) Neighbour(ctx context.Context, name string, addresses ...netip.Prefix) (*Neighbour, error) {
	n := &Neighbour{name, Net{l.sandbox.Path("run/netns", name)}, l}
	commands := [][]string{
		{"ip", "netns", "add", name},
		{"ip", "-n", name, "link", "set", "lo", "up"},
		{"ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name},
		{"ip", "link", "set", name, "master", bridge},
		{"ip", "link", "set", name, "up"},
		{"ip", "-n", name, "link", "set", "eth0", "up"},
	}
	for _, a := range addresses {
		commands = append(commands, []string{"ip", "-n", name, "address", "add", a.String(), "dev", "eth0"})
	}
	for _, argv := range commands {
		if err := l.sandbox.Run(ctx, argv...); err != nil {
			return nil, fmt.Errorf("lab: neighbour %s: %w", name, err)
		}
	}
	return n, nil
}

// Run runs a program of the image's in the neighbour's network.
func (n *Neighbour) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := output(n.lab.sandbox.Command(ctx, append([]string{"ip", "netns", "exec", n.Name, "chroot", imageRoot}, argv...)...))
	if err != nil {
		return out, fmt.Errorf("neighbour %s: %s: %w", n.Name, strings.Join(argv, " "), err)
	}
	return out, nil
}

// Masquerade makes it a router that hides who is behind it, and lets nobody in who was
// not spoken to.
func (n *Neighbour) Masquerade(ctx context.Context) error {
	sandbox := n.lab.sandbox
	if err := sandbox.Run(ctx, "ip", "netns", "exec", n.Name, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"); err != nil {
		return err
	}
	for _, rule := range []string{
		"-t nat -A POSTROUTING -o eth0 -j MASQUERADE",
		"-A FORWARD -i eth0 -m conntrack --ctstate NEW,INVALID -j DROP",
	} {
		if _, err := n.Run(ctx, append([]string{"iptables"}, strings.Fields(rule)...)...); err != nil {
			return err
		}
	}
	return nil
}

// IP runs iproute's command in the neighbour's network.
func (n *Neighbour) IP(ctx context.Context, args ...string) error {
	return n.lab.sandbox.Run(ctx, append([]string{"ip", "-n", n.Name}, args...)...)
}

// Behind takes a container's cable out of the bridge and puts it into a neighbour,
// where it is called as the machine.
func (m *Machine) Behind(ctx context.Context, n *Neighbour) error {
	for _, argv := range [][]string{
		{"ip", "link", "set", m.Name, "netns", n.Name},
		{"ip", "-n", n.Name, "link", "set", m.Name, "up"},
	} {
		if err := m.lab.sandbox.Run(ctx, argv...); err != nil {
			return fmt.Errorf("machine %s: behind %s: %w", m.Name, n.Name, err)
		}
	}
	return nil
}

// Unplug takes a container's cable out until Plug.
func (m *Machine) Unplug(ctx context.Context) error { return m.cable(ctx, "down") }

// Plug puts it in again.
func (m *Machine) Plug(ctx context.Context) error { return m.cable(ctx, "up") }

func (m *Machine) cable(ctx context.Context, state string) error {
	if err := m.lab.sandbox.Run(ctx, "ip", "link", "set", m.Name, state); err != nil {
		return fmt.Errorf("machine %s: %w", m.Name, err)
	}
	return nil
}

// Net is the network of a container that is on.
func (m *Machine) Net() Net { return Net{m.lab.sandbox.Path(filepath.Join("run/netns", m.Name))} }
