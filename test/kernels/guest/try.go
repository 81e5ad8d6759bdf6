package main

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// megabytes are sent through the tunnel.
var megabytes = 100

// gap is how long a connection may stand still while a node moves or starts again.
const gap = 30 * time.Second

// trial is a network of three computers: two nodes on a LAN of one wire, and a stranger
// on another wire of node b's.
type trial struct {
	a, b, stranger *host
	nodeA, nodeB   Node
}

// try tries everything, each thing after the ones before; the first that fails ends it.
func try() {
	os.Setenv("PATH", strings.TrimPrefix(path, "PATH="))
	if n, err := strconv.Atoi(os.Getenv("MEGABYTES")); err == nil {
		megabytes = n
	}
	var t trial
	for _, step := range []struct {
		name string
		do   func() (string, error)
	}{
		{"the kernel, and what it has", kernel},
		{"xivo-firstboot runs", program},
		{"random numbers, and a secret stretched", t.draw},
		{"three computers with wires between them", t.wire},
		{"the overlay address, and no other way to the range", t.address},
		{"the firewall", t.guard},
		{"two nodes meet, shake hands and gossip", t.join},
		{fmt.Sprintf("%d MB through the tunnel", megabytes), t.bulk},
		{"a stranger reaches nothing of the overlay by another wire", t.strange},
		{"one node's address changes, and a connection survives", t.move},
		{"a service that was killed comes back, and the connection survives", t.restart},
		{"the kernel has nothing to complain of", quiet},
	} {
		start := time.Now()
		detail, err := step.do()
		took := time.Since(start).Round(time.Millisecond)
		if err != nil {
			fmt.Printf("FAIL %s (%s): %v\n", step.name, took, err)
			for _, h := range []*host{t.a, t.b} {
				if h != nil {
					log, _ := ask[string](h, "Log", Nothing{})
					fmt.Printf("%s said:\n%s\n", h.name, log)
				}
			}
			break
		}
		fmt.Printf("PASS %s (%s): %s\n", step.name, took, strings.ReplaceAll(detail, "\n", "; "))
	}
	fmt.Println("DONE")
}

func kernel() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	// What Go asks of an old kernel, it has another way for.
	_, err := unix.Getrandom(make([]byte, 1), 0)
	_, noIPv6 := os.Stat("/proc/sys/net/ipv6")
	said := fmt.Sprintf("%s, the program is %s; getrandom: %v; IPv6 missing: %t", unix.ByteSliceToString(u.Release[:]), runtime.GOARCH, err, noIPv6 != nil)
	if as := os.Getenv("KERNEL"); as != "" {
		return said + "; behaves as " + as, taken(as, err)
	}
	return said, nil
}

// taken looks whether the filter takes away what it should, so that what passes behind
// it is worth something.
func taken(as string, getrandom error) error {
	if old := as != "4.9"; old != (getrandom == unix.ENOSYS) {
		return fmt.Errorf("getrandom: %v", getrandom)
	}
	if _, err := unix.PidfdOpen(os.Getpid(), 0); err != unix.ENOSYS {
		return fmt.Errorf("pidfd_open: %v", err)
	}
	if runtime.GOARCH == "386" {
		return nil // its options pass by the filter
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if err := unix.SetsockoptInt(s, unix.SOL_UDP, unix.UDP_GRO, 1); err != unix.ENOPROTOOPT {
		return fmt.Errorf("UDP_GRO: %v", err)
	}
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); (as == "3.2") != (err == unix.ENOPROTOOPT) {
		return fmt.Errorf("SO_REUSEPORT: %v", err)
	}
	const mptcp = 262
	if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, mptcp); err != unix.EPROTONOSUPPORT && err != unix.EINVAL {
		return fmt.Errorf("MPTCP: %v", err)
	}
	return nil
}

func program() (string, error) {
	for _, args := range [][]string{{"secret"}, {"overlay", "--address"}, {"version"}} {
		out, err := exec.Command("/xivo-firstboot", args...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("xivo-firstboot %s: %w: %s", strings.Join(args, " "), err, out)
		}
		if args[0] == "version" {
			return strings.TrimSpace(string(out)), nil
		}
	}
	return "", nil
}

func (t *trial) draw() (string, error) {
	start := time.Now()
	root := secret.Stretch(secret.New()).Derive("overlay", 32)
	took := time.Since(start)
	twice := [2][16]byte{}
	for i := range twice {
		rand.Read(twice[i][:])
	}
	if twice[0] == twice[1] {
		return "", fmt.Errorf("the same numbers twice")
	}
	var err error
	if t.nodeA, err = newNode("a", root, "10.0.0.2"); err != nil {
		return "", err
	}
	t.nodeB, err = newNode("b", root)
	return fmt.Sprintf("stretched in %s", took.Round(time.Millisecond)), err
}

func (t *trial) wire() (string, error) {
	for name, h := range map[string]**host{"a": &t.a, "b": &t.b, "stranger": &t.stranger} {
		var err error
		if *h, err = newHost(name); err != nil {
			return "", err
		}
		if err := (*h).run("ip link set dev lo up"); err != nil {
			return "", err
		}
	}
	err := t.a.run(`ip link add eth0 type veth peer name wire
		ip link set dev wire netns %d
		ip addr add 10.0.0.1/24 dev eth0
		ip link set dev eth0 up`, t.b.cmd.Process.Pid)
	if err != nil {
		return "", err
	}
	err = t.b.run(`ip link set dev wire name eth0
		ip addr add 10.0.0.2/24 dev eth0
		ip link set dev eth0 up
		ip link add eth1 type veth peer name wire
		ip link set dev wire netns %d
		ip addr add 10.0.1.2/24 dev eth1
		ip link set dev eth1 up
		ip route add default via 10.0.1.3`, t.stranger.cmd.Process.Pid)
	if err != nil {
		return "", err
	}
	return "", t.stranger.run(`ip link set dev wire name eth0
		ip addr add 10.0.1.3/24 dev eth0
		ip link set dev eth0 up
		ip route add %s via 10.0.1.2`, overlay.DefaultRange)
}

func (t *trial) address() (string, error) {
	if _, err := ask[Nothing](t.a, "Address", t.nodeA.Address); err != nil {
		return "", err
	}
	if _, err := ask[Nothing](t.b, "Address", t.nodeB.Address); err != nil {
		return "", err
	}
	version, err := ask[string](t.a, "Run", []string{"ip", "-V"})
	if err != nil {
		return "", err
	}
	routes, err := ask[string](t.a, "Run", []string{"ip", "-4", "route", "show", "table", "main"})
	return strings.TrimSpace(version) + "\n" + strings.TrimSpace(routes), err
}

func (t *trial) guard() (string, error) {
	if _, err := ask[[]string](t.a, "Guard", t.nodeA.Address); err != nil {
		return "", err
	}
	if _, err := ask[Nothing](t.a, "Bare", Nothing{}); err != nil {
		return "", err
	}
	gaps, err := ask[[]string](t.a, "Guard", t.nodeA.Address)
	if err != nil {
		return "", err
	}
	if _, err := ask[[]string](t.b, "Guard", t.nodeB.Address); err != nil {
		return "", err
	}
	version, err := ask[string](t.a, "Run", []string{"iptables", "--version"})
	return fmt.Sprintf("%s; gaps: %q", strings.TrimSpace(version), gaps), err
}

// until waits for something to be so.
func until(what string, so func() (bool, error)) error {
	var last error
	for end := time.Now().Add(hang); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var is bool
		if is, last = so(); is {
			return nil
		}
	}
	return fmt.Errorf("never: %s: %v", what, last)
}

// up waits until the service of h answers.
func (t *trial) up(h *host) error {
	return until(h.name+"'s service answers", func() (bool, error) {
		_, err := ask[overlay.Status](h, "Status", Nothing{})
		return err == nil, err
	})
}

// shaken waits until h sees the other node with a handshake.
func (t *trial) shaken(h *host, other Node) error {
	return t.sees(h, other, func(p overlay.PeerStatus) bool { return p.Handshake >= 0 })
}

// joined waits until h sees the other node with a handshake, and in the gossip.
func (t *trial) joined(h *host, other Node) error {
	return t.sees(h, other, func(p overlay.PeerStatus) bool { return p.Handshake >= 0 && p.Gossip })
}

func (t *trial) sees(h *host, other Node, so func(overlay.PeerStatus) bool) error {
	return until(h.name+" sees the other node", func() (bool, error) {
		s, err := ask[overlay.Status](h, "Status", Nothing{})
		return slices.ContainsFunc(s.Peers, func(p overlay.PeerStatus) bool { return p.UUID == other.Address.UUID && so(p) }), err
	})
}

func (t *trial) join() (string, error) {
	if _, err := ask[Nothing](t.b, "Start", t.nodeB); err != nil {
		return "", err
	}
	// It is looked for again only after half a minute.
	if err := t.up(t.b); err != nil {
		return "", err
	}
	start := time.Now()
	if _, err := ask[Nothing](t.a, "Start", t.nodeA); err != nil {
		return "", err
	}
	if err := t.joined(t.a, t.nodeB); err != nil {
		return "", err
	}
	err := t.joined(t.b, t.nodeA)
	return fmt.Sprintf("%s after the start of the second", time.Since(start).Round(time.Millisecond)), err
}

// xivoPort is one that peers may reach; closedPort none of theirs.
const (
	xivoPort   = 5672
	closedPort = 5432
)

func (t *trial) bulk() (string, error) {
	for _, port := range []int{xivoPort, closedPort} {
		if _, err := ask[Nothing](t.b, "Serve", t.nodeB.at(port)); err != nil {
			return "", err
		}
	}
	if _, err := ask[Nothing](t.a, "Open", t.nodeB.at(xivoPort)); err != nil {
		return "", err
	}
	took, err := ask[time.Duration](t.a, "Send", int64(megabytes)*1e6)
	if err != nil {
		return "", err
	}
	memory, err := ask[int](t.b, "Memory", Nothing{})
	return fmt.Sprintf("%.1f Mbit/s; the service that received holds %d MiB", 8*float64(megabytes)/took.Seconds(), memory>>10), err
}

// strange knocks with the firewall, and without: what is seen is the firewall's doing.
func (t *trial) strange() (string, error) {
	knock := func(h *host, port int) (bool, error) { return ask[bool](h, "Knock", t.nodeB.at(port)) }
	if open, err := knock(t.stranger, xivoPort); err != nil || open {
		return "", fmt.Errorf("it reached port %d: %v", xivoPort, err)
	}
	if open, err := knock(t.a, closedPort); err != nil || open {
		return "", fmt.Errorf("a peer reached port %d: %v", closedPort, err)
	}
	if open, err := knock(t.a, xivoPort); err != nil || !open {
		return "", fmt.Errorf("a peer did not reach port %d: %v", xivoPort, err)
	}
	if _, err := ask[Nothing](t.b, "Bare", Nothing{}); err != nil {
		return "", err
	}
	if open, err := knock(t.stranger, xivoPort); err != nil || !open {
		return "", fmt.Errorf("without the firewall it does not reach port %d either: %v", xivoPort, err)
	}
	_, err := ask[[]string](t.b, "Guard", t.nodeB.Address)
	return "", err
}

// pings sends one small message on the open connection.
func (t *trial) pings() (string, error) {
	took, err := ask[time.Duration](t.a, "Send", int64(100))
	if err == nil && took > gap {
		err = fmt.Errorf("the connection stood still for %s", took)
	}
	return fmt.Sprintf("answered after %s", took.Round(10*time.Microsecond)), err
}

func (t *trial) move() (string, error) {
	err := t.a.run(`ip addr add 10.0.0.11/24 dev eth0
		ip addr del 10.0.0.1/24 dev eth0
		ip addr replace 10.0.0.11/24 dev eth0`)
	if err != nil {
		return "", err
	}
	answered, err := t.pings()
	if err != nil {
		return "", err
	}
	return answered, until("b keeps where a is now, and not where it was", func() (bool, error) {
		kept, err := ask[string](t.b, "Kept", Nothing{})
		return strings.Contains(kept, "10.0.0.11:") && !strings.Contains(kept, "10.0.0.1:"), err
	})
}

func (t *trial) restart() (string, error) {
	if _, err := ask[Nothing](t.b, "Kill", Nothing{}); err != nil {
		return "", err
	}
	// Meanwhile nothing of it goes another way.
	if out, err := ask[string](t.b, "Run", []string{"ip", "route", "get", t.nodeA.Address.Address.String()}); err == nil {
		return "", fmt.Errorf("while its service is away, b would send by %s", out)
	}
	start := time.Now()
	if _, err := ask[Nothing](t.b, "Start", t.nodeB); err != nil {
		return "", err
	}
	var there, shaken time.Duration
	watched := make(chan error, 1)
	go func() {
		err := t.up(t.b)
		there = time.Since(start)
		if err == nil {
			err = t.shaken(t.b, t.nodeA)
		}
		shaken = time.Since(start)
		watched <- err
	}()
	answered, err := t.pings()
	if err := cmp.Or(err, <-watched); err != nil {
		return "", err
	}
	return fmt.Sprintf("it is there after %s, shakes hands after %s; the connection %s", there.Round(time.Millisecond), shaken.Round(time.Millisecond), answered), nil
}

func quiet() (string, error) {
	if os.Getenv("VIRTUAL") == "" {
		return "it is this machine's own: not asked", nil
	}
	bad, err := complaints()
	if err == nil && len(bad) > 0 {
		err = fmt.Errorf("it logged: %s", strings.Join(bad, "\n"))
	}
	return "", err
}
