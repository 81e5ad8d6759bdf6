package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// Network is what a machine has besides loopback; the zero value is loopback
// alone. It is set up from outside, before the machine boots.
type Network struct {
	// Veth connects the machine to the sandbox's own network.
	Veth *Veth
	// Uplink lets the machine reach what the host reaches, except the host's own
	// loopback, through a user-space network stack (slirp4netns): address
	// 10.0.2.100/24 on tap0. /etc/resolv.conf of the machine then points at its
	// name server for as long as the machine runs. Nothing reaches the machine.
	Uplink bool
}

// Veth is a virtual cable between a machine and the network of the sandbox.
type Veth struct {
	Name    string       // in the machine, for example eth0
	Peer    string       // in the sandbox; 15 characters at most, unique in it
	Bridge  string       // of the sandbox, that Peer is put into; "" = none
	MAC     string       // of the machine's end; "" = the kernel's choice
	Address netip.Prefix // of the machine's end; the zero value leaves it to the machine
	Gateway netip.Addr   // default route; the zero value = none
}

// uplinkResolver is the name server of slirp4netns, which asks the host's.
const uplinkResolver = "10.0.2.3"

// setUpNetwork makes the machine's network namespace. It is a named one, below
// the sandbox's private /run.
func (m *Machine) setUpNetwork(ctx context.Context) error {
	commands := [][]string{
		{"ip", "netns", "add", m.Name},
		{"ip", "-n", m.Name, "link", "set", "lo", "up"},
	}
	if v := m.Network.Veth; v != nil {
		add := []string{"ip", "link", "add", v.Peer, "type", "veth", "peer", "name", v.Name, "netns", m.Name}
		if v.MAC != "" {
			add = append(add, "address", v.MAC)
		}
		commands = append(commands, add)
		if v.Bridge != "" {
			commands = append(commands, []string{"ip", "link", "set", v.Peer, "master", v.Bridge})
		}
		commands = append(commands, []string{"ip", "link", "set", v.Peer, "up"})
		if v.Address.IsValid() {
			commands = append(commands,
				[]string{"ip", "-n", m.Name, "address", "add", v.Address.String(), "dev", v.Name},
				[]string{"ip", "-n", m.Name, "link", "set", v.Name, "up"})
		}
		if v.Gateway.IsValid() {
			commands = append(commands, []string{"ip", "-n", m.Name, "route", "add", "default", "via", v.Gateway.String()})
		}
	}
	for _, argv := range commands {
		if err := m.Sandbox.Run(ctx, argv...); err != nil {
			return err
		}
	}
	if m.Network.Uplink {
		return m.startUplink(ctx)
	}
	return nil
}

// startUplink returns when the machine's end is configured. slirp4netns needs
// the host's network and files, so it joins nothing of the sandbox but the
// process namespace: that is what ends it when we die.
func (m *Machine) startUplink(ctx context.Context) error {
	ready, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	var said strings.Builder

	cmd := exec.Command("nsenter", "-t", fmt.Sprint(m.Sandbox.holder.Process.Pid), "-p", "--",
		"slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback", "--ready-fd=3",
		"--netns-type=path", m.Sandbox.Path("run/netns", m.Name), "tap0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.Stdout, cmd.Stderr = &said, &said
	err = cmd.Start()
	readyW.Close()
	if err != nil {
		return fmt.Errorf("machine %s: start slirp4netns: %w", m.Name, err)
	}

	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		cmd.Wait()
		return fmt.Errorf("machine %s: slirp4netns gave it no uplink: %w: %s", m.Name,
			errors.Join(ctx.Err(), err), strings.TrimSpace(said.String()))
	}
	m.uplink = cmd
	return nil
}

// takeDownNetwork ends the uplink and removes the veth and the namespace, so
// that a machine of this name can be started again.
func (m *Machine) takeDownNetwork() {
	if m.uplink != nil {
		syscall.Kill(-m.uplink.Process.Pid, syscall.SIGKILL)
		m.uplink.Wait()
		m.uplink = nil
	}
	// Errors are ignored: after a set-up that failed, neither exists, and both end
	// with the sandbox. The veth comes first, because the kernel removes those of a
	// deleted namespace some time later.
	if v := m.Network.Veth; v != nil {
		m.Sandbox.Run(context.Background(), "ip", "link", "delete", v.Peer)
	}
	m.Sandbox.Run(context.Background(), "ip", "netns", "delete", m.Name)
}
