// Package machine boots Debian machines under systemd-nspawn, in namespaces
// that die with the process that asked for them.
//
// Everything that a machine needs (mounts, loop devices, network namespaces,
// veths, processes) lives in a Sandbox: mount, network and process namespaces
// held by one child on a pipe from us. When we end, however we end, the pipe
// closes, the holder exits, and the kernel takes the rest down: a process
// namespace dies with its first process, a mount namespace with its last. The
// host sees no mount, no entry in /run/netns, no firewall rule and no change of
// its forwarding.
//
// It needs root, and neither systemd nor udev on the host.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Sandbox is a set of namespaces of our own. It starts as a copy of the host's
// mounts, private (nothing done in it reaches the host), with an empty /run, a
// /proc of its own and a network that has nothing but loopback.
type Sandbox struct {
	holder  *exec.Cmd
	release io.Closer // closing it ends the holder and, with it, the sandbox
	cgroups *cgroups
}

// NewSandbox makes a sandbox. The caller ends it with Close; when the caller
// dies without, it ends all the same. ctx bounds the set-up alone.
func NewSandbox(ctx context.Context) (_ *Sandbox, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("machine: systemd-nspawn needs root: run this as root (for Packer: sudo -E packer build ...)")
	}
	if err := Require(Nsenter, Mount, IP); err != nil {
		return nil, err
	}

	s := &Sandbox{}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.cgroups, err = newCgroups(); err != nil {
		return nil, err
	}

	if err := s.startHolder(); err != nil {
		return nil, err
	}
	for _, argv := range [][]string{
		{"mount", "--make-rprivate", "/"},
		{"mount", "-t", "proc", "proc", "/proc"},
		{"mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"},
		{"ip", "link", "set", "lo", "up"},
	} {
		if err := s.Run(ctx, argv...); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// startHolder starts the process that holds the namespaces until the pipe from
// us closes.
func (s *Sandbox) startHolder() (err error) {
	// cat is the smallest program that ends when a pipe closes. As the first process
	// of its namespace it ignores the signals that it has no handler for, such as
	// that of Ctrl-C.
	s.holder = exec.Command("cat")
	s.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Setpgid:    true,
	}
	if s.release, err = s.holder.StdinPipe(); err != nil {
		return fmt.Errorf("machine: start a sandbox: %w", err)
	}
	if err := s.holder.Start(); err != nil {
		return fmt.Errorf("machine: make namespaces: %w (in a container, it has to be a privileged one)", err)
	}
	return nil
}

// Command is a command that runs in the sandbox, with our environment. When ctx
// ends, it and what it started are killed.
func (s *Sandbox) Command(ctx context.Context, argv ...string) *exec.Cmd {
	pid := strconv.Itoa(s.holder.Process.Pid)
	return command(ctx, append([]string{"nsenter", "-t", pid, "-m", "-n", "-p", "--"}, argv...)...)
}

// Run runs a command in the sandbox to its end. The error carries what the
// command said.
func (s *Sandbox) Run(ctx context.Context, argv ...string) error {
	out, err := s.Command(ctx, argv...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("machine: %s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Path is the place on the host where a file of the sandbox can be opened, those
// on mounts of the sandbox included. An absolute symbolic link on the way leads
// out of the sandbox: hand it no path that a machine can write to.
func (s *Sandbox) Path(elem ...string) string {
	return filepath.Join(append([]string{s.proc("root")}, elem...)...)
}

// Namespace is the sandbox's namespace of a kind ("net", "mnt", ...) for setns
// or nsenter, valid as long as the sandbox.
func (s *Sandbox) Namespace(kind string) string { return s.proc("ns", kind) }

func (s *Sandbox) proc(elem ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(s.holder.Process.Pid)}, elem...)...)
}

// Close ends the sandbox: every process in it is killed, every mount of it gone
// when Close returns. Machines are powered off first by whoever started them,
// or they are cut off here. Closing twice is harmless.
func (s *Sandbox) Close() error {
	if s.release != nil {
		s.release.Close()
		s.release = nil
		// The kernel lets the first process of a namespace be reaped only after
		// all the others.
		s.holder.Wait()
	}
	if s.cgroups != nil {
		err := s.cgroups.close()
		s.cgroups = nil
		return err
	}
	return nil
}

// command is exec.CommandContext in a process group of its own: Ctrl-C at our
// terminal does not reach it behind our back, and its end takes along what it
// started, whatever process namespace that is in.
func command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}
