package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Machine is a Debian root booted with its own systemd. The exported fields are
// set before Start and not changed afterwards.
type Machine struct {
	Sandbox *Sandbox // that it lives in
	Name    string   // of the machine, unique in its sandbox; its host name is what /etc/hostname in Root says
	Root    string   // folder, as the sandbox sees it, that becomes /; written to
	Binds   []Bind
	Network Network

	// BootArgs are given to systemd as its command line, which systemd and
	// cloud-init in a container read in place of the kernel's: for example
	// "cloud-init=disabled", "systemd.mask=networking.service".
	BootArgs []string

	// Output, where not nil, gets the console as the machine prints it.
	Output io.Writer

	console Tail
	uplink  *exec.Cmd
	exited  chan struct{} // nil before Start; closed when nspawn is gone and cleaned up after
	exit    error         // nspawn's, valid after exited is closed

	mu     sync.Mutex
	nspawn *exec.Cmd // another one after each reboot
}

// Bind shows a file or folder of the sandbox in the machine.
type Bind struct {
	Source, Target string
	ReadOnly       bool
}

// option is nspawn's, for which a colon ends a path.
func (b Bind) option() string {
	option := "--bind="
	if b.ReadOnly {
		option = "--bind-ro="
	}
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace
	return option + escape(b.Source) + ":" + escape(b.Target)
}

// SeedDir is where cloud-init's NoCloud looks for a seed in a machine.
const SeedDir = "/var/lib/cloud/seed/nocloud"

// poll is the interval at which a state is read for which there is no event.
const poll = 100 * time.Millisecond

// enterCgroups moves into the groups named before "--" and becomes the command
// behind it: nspawn builds the machine's tree where it finds itself.
const enterCgroups = `while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit; shift; done; shift; exec "$@"`

// Start boots the machine and returns when its first process runs, which is when
// Command works; WaitRunning waits for the services. The machine outlives ctx and
// its own reboots: Poweroff ends it, and so does the end of the sandbox.
func (m *Machine) Start(ctx context.Context) (err error) {
	if m.exited != nil {
		return fmt.Errorf("machine %s: started already", m.Name)
	}
	need := []Tool{Nspawn}
	if m.Network.Uplink {
		need = append(need, Slirp)
	}
	if err := Require(need...); err != nil {
		return err
	}
	groups, err := m.Sandbox.cgroups.machine(m.Name)
	if err != nil {
		return err
	}

	defer func() {
		if m.exited == nil {
			m.takeDownNetwork()
			m.Sandbox.Run(context.Background(), "umount", m.rootMount())
		}
	}()
	if err := m.setUpNetwork(ctx); err != nil {
		return fmt.Errorf("machine %s: set up its network: %w", m.Name, err)
	}
	argv, err := m.nspawnArgs(ctx)
	if err != nil {
		return err
	}
	argv = slices.Concat([]string{"sh", "-c", enterCgroups, "sh"}, groups, []string{"--"}, argv)
	cmd, err := m.startNspawn(argv)
	if err != nil {
		return err
	}
	m.exited = make(chan struct{})
	go m.supervise(cmd, argv)

	return m.wait(ctx, "its first process", func() (bool, error) {
		_, err := m.leader()
		return err == nil, nil
	})
}

func (m *Machine) startNspawn(argv []string) (*exec.Cmd, error) {
	// No ctx: the machine outlives the caller's.
	cmd := m.Sandbox.Command(context.Background(), argv...)
	var out io.Writer = &m.console
	if m.Output != nil {
		out = io.MultiWriter(&m.console, m.Output)
	}
	cmd.Stdout, cmd.Stderr = out, out
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("machine %s: start systemd-nspawn: %w", m.Name, err)
	}
	m.nspawn = cmd
	return cmd, nil
}

// rebooted is how nspawn, with --keep-unit, asks to be started again.
const rebooted = 133

// supervise waits for the machine to end, starting it again when it reboots.
func (m *Machine) supervise(cmd *exec.Cmd, argv []string) {
	defer close(m.exited)
	defer m.takeDownNetwork()
	// Root is its owner's again, to unmount for example.
	defer m.Sandbox.Run(context.Background(), "umount", m.rootMount())
	for {
		m.exit = cmd.Wait()
		if cmd.ProcessState.ExitCode() != rebooted {
			return
		}
		var err error
		if cmd, err = m.startNspawn(argv); err != nil {
			m.exit = err
			return
		}
	}
}

// runDir holds, below the sandbox's /run, what nspawn is given.
func (m *Machine) runDir() string { return filepath.Join("/run/machine", m.Name) }

func (m *Machine) rootMount() string { return filepath.Join(m.runDir(), "root") }

// nspawnArgs lays out runDir and returns the command line.
func (m *Machine) nspawnArgs(ctx context.Context) ([]string, error) {
	dir, root := m.runDir(), m.rootMount()
	if err := os.MkdirAll(m.Sandbox.Path(root), 0o755); err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	// nspawn leaves a lock file beside the root that it is given: beside this mount,
	// it ends with the sandbox.
	if err := m.Sandbox.Run(ctx, "mount", "--bind", m.Root, root); err != nil {
		return nil, err
	}

	argv := []string{"systemd-nspawn", "--quiet",
		"--directory=" + root, "--machine=" + m.Name,
		// No systemd on the host to tell.
		"--register=no", "--keep-unit",
		// Passed on to us. With "passive" nobody reads it: its buffer fills up, and
		// systemd in the machine stands still for ever in its next line.
		"--console=read-only",
		"--network-namespace-path=/run/netns/" + m.Name, "--capability=CAP_NET_ADMIN",
		// Nothing of the host is copied into the root.
		"--timezone=off", "--resolv-conf=off", "--link-journal=no",
	}
	binds := m.Binds
	if m.Network.Uplink {
		resolv := filepath.Join(dir, "resolv.conf")
		if err := os.WriteFile(m.Sandbox.Path(resolv), []byte("nameserver "+uplinkResolver+"\n"), 0o644); err != nil {
			return nil, fmt.Errorf("machine %s: %w", m.Name, err)
		}
		binds = append(slices.Clone(binds), Bind{Source: resolv, Target: "/etc/resolv.conf", ReadOnly: true})
	}
	for _, b := range binds {
		argv = append(argv, b.option())
	}
	return slices.Concat(argv, []string{"--boot", "--"}, m.BootArgs), nil
}

// enter forks into the process namespace and waits there itself, because nsenter,
// when it does that, stops as soon as its child is stopped. A machine going down
// stops everything in it: nsenter would never reap its child, and the machine,
// which waits for it, never end.
const enter = `"$@"; exit $?`

// Argv is the command line that runs argv in the machine, from the host, as
// root: in every namespace of its first process.
func (m *Machine) Argv(argv ...string) ([]string, error) {
	leader, err := m.leader()
	if err != nil {
		return nil, err
	}
	pid := strconv.Itoa(leader)
	return append([]string{
		"nsenter", "-t", pid, "-p", "--no-fork", "--", "sh", "-c", enter, "sh",
		"nsenter", "-t", pid, "-m", "-u", "-i", "-n", "-C", "--root", "--wd", "--",
	}, argv...), nil
}

// Boot tells one boot of the machine from another: it changes when the machine
// begins its last steps down, and is "" while it is not up.
func (m *Machine) Boot() string {
	leader, err := m.leader()
	if err != nil {
		return ""
	}
	// systemd's first process becomes systemd-shutdown.
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", leader))
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d %s", leader, bytes.TrimSpace(comm))
}

// Command is a command that runs in the machine as root, in /, with an
// environment of its own. When ctx ends, it and what it started are killed.
func (m *Machine) Command(ctx context.Context, argv ...string) *exec.Cmd {
	full, err := m.Argv(argv...)
	if err != nil {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Err = err
		return cmd
	}
	cmd := command(ctx, full...)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8", "TERM=dumb",
	}
	return cmd
}

// WaitRunning waits until systemd in the machine has finished booting, and
// returns the units that failed (state "degraded"), nil when none did. An
// error: ctx ended, or the machine did.
func (m *Machine) WaitRunning(ctx context.Context) (failed []string, err error) {
	var state string
	err = m.wait(ctx, "systemd to finish booting", func() (bool, error) {
		// It exits non-zero in every state but "running"; early on it says
		// nothing at all.
		out, _ := m.Command(ctx, "systemctl", "is-system-running").Output()
		state = strings.TrimSpace(string(out))
		switch state {
		case "running", "degraded":
			return true, nil
		case "maintenance", "stopping":
			return false, fmt.Errorf("machine %s: systemd is in state %q instead of running\n%s", m.Name, state, m.Console())
		}
		return false, nil
	})
	if err != nil || state == "running" {
		return nil, err
	}

	out, err := m.Command(ctx, "systemctl", "list-units", "--state=failed", "--plain", "--no-legend").Output()
	if err != nil {
		return nil, fmt.Errorf("machine %s: list the failed units: %w", m.Name, err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 {
			failed = append(failed, f[0])
		}
	}
	return failed, nil
}

// Poweroff shuts the machine down in good order and returns when nothing of it
// runs any more. When ctx ends first, it is cut off, and the error says so. A
// machine that is down already, or was never started, is no error.
func (m *Machine) Poweroff(ctx context.Context) error {
	if m.exited == nil {
		return nil
	}
	defer func() { m.exited = nil }()

	// What systemd documents as "start poweroff.target". Asked again and again,
	// because an init that has not set up its handlers yet drops it; one that
	// does not know it at all is cut off when ctx ends.
	err := m.wait(ctx, "it to power off", func() (bool, error) {
		if leader, err := m.leader(); err == nil {
			syscall.Kill(leader, syscall.Signal(sigrtmin+4))
		}
		return false, nil
	})
	select {
	case <-m.exited:
		return nil
	default:
	}
	m.kill()
	return fmt.Errorf("machine %s was cut off: %w", m.Name, err)
}

// Cut ends the machine at once, as a power cut does: its processes are killed, and
// none of them is asked to stop. A machine that is down is no error.
func (m *Machine) Cut() {
	if m.exited != nil {
		m.kill()
		m.exited = nil
	}
}

func (m *Machine) kill() {
	if leader, err := m.leader(); err == nil {
		syscall.Kill(leader, syscall.SIGKILL)
	}
	m.mu.Lock()
	syscall.Kill(-m.nspawn.Process.Pid, syscall.SIGKILL)
	m.mu.Unlock()
	<-m.exited
}

// sigrtmin is glibc's, which keeps the kernel's first two for itself.
const sigrtmin = 34

// Exited is closed when the machine that Start started is down, by itself or by
// Poweroff. Poweroff is called in the first case too before the next Start.
func (m *Machine) Exited() <-chan struct{} { return m.exited }

// Console returns the last part of what the machine printed on its console.
func (m *Machine) Console() string { return m.console.String() }

// wait polls until done says so, the machine ends or ctx does.
func (m *Machine) wait(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for start := time.Now(); ; {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-m.exited:
			return fmt.Errorf("machine %s: ended while waiting for %s: %w\n%s", m.Name, what,
				errors.Join(m.exit, errors.New("systemd-nspawn is gone")), m.Console())
		case <-ctx.Done():
			return fmt.Errorf("machine %s: waiting for %s (%s): %w\n%s", m.Name, what,
				time.Since(start).Round(time.Second), context.Cause(ctx), m.Console())
		}
	}
}

// leader is the pid, as the host sees it, of the machine's first process. It is
// looked up each time, because a reboot changes it.
func (m *Machine) leader() (int, error) {
	m.mu.Lock()
	cmd := m.nspawn
	m.mu.Unlock()
	if cmd == nil {
		return 0, fmt.Errorf("machine %s is not started", m.Name)
	}
	// nsenter, nspawn, the machine's init: each the only child that counts.
	for _, nspawn := range children(cmd.Process.Pid) {
		outer, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", nspawn))
		if err != nil {
			continue
		}
		for _, pid := range children(nspawn) {
			inner, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
			if err != nil || inner == outer {
				continue // nspawn's helper while it sets the machine up
			}
			// Still nspawn itself until it becomes the init.
			if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil && !bytes.HasPrefix(comm, []byte("(sd-")) && !bytes.HasPrefix(comm, []byte("systemd-nspawn")) {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("machine %s is not running", m.Name)
}

func children(pid int) []int {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(raw)) {
		if n, err := strconv.Atoi(field); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// Tail keeps the last part of what is written to it.
type Tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 16 << 10

// Write implements io.Writer; it never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if extra := len(t.buf) - tailSize; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (t *Tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
