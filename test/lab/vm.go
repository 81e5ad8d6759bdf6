package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
)

// Hypervisor says how a lab makes virtual machines of an image.
type Hypervisor struct {
	Image string // the disk that machines are clones of; only read
	Dir   string // where their disks and seeds go
	// Accelerator is QEMU's: kvm or tcg.
	Accelerator string
	// Key is the file of an SSH key, KeyPublic what says who may log in with it.
	Key, KeyPublic string
	// Seed writes a machine's seed into a folder, and returns what a shell runs to
	// boot a clone of the image with it on that bridge, in the foreground. The
	// clone's disk is in that folder, too, named by the machine's instance id.
	Seed func(ctx context.Context, dir, image, bridge string, n Node) (commandLine string, err error)
}

// NewVirtual makes a lab whose machines are virtual ones under QEMU: they boot
// by their own boot loader, and have the DMI that it gives them.
func NewVirtual(ctx context.Context, h Hypervisor) (*Lab, error) {
	l, err := empty(ctx)
	if err != nil {
		return nil, err
	}
	l.build = func(ctx context.Context, n Node) (computer, error) { return l.virtual(ctx, h, n) }
	// QEMU's helper joins bridges that this file of the host allows. Here it is
	// in a layer of our own.
	const etc, allow = top + "/etc", top + "/etc/upper/qemu"
	err = errors.Join(
		os.MkdirAll(l.sandbox.Path(allow), 0o755),
		os.Mkdir(l.sandbox.Path(etc, "work"), 0o755),
		os.WriteFile(l.sandbox.Path(allow, "bridge.conf"), []byte("allow "+bridge+"\n"), 0o644),
	)
	if err == nil {
		err = l.sandbox.Run(ctx, "mount", "-t", "overlay", "-o",
			"lowerdir=/etc,upperdir="+etc+"/upper,workdir="+etc+"/work", "overlay", "/etc")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lab: %w", err), l.Close())
	}
	return l, nil
}

// dmiOption is what gives a virtual machine its DMI UUID.
var dmiOption = regexp.MustCompile(` -uuid \S+ `)

// vm is a virtual machine that QEMU runs in the sandbox, entered by SSH.
type vm struct {
	sandbox     *machine.Sandbox
	name        string
	commandLine string
	disk        string
	ssh         []string // the command that runs the rest of it, quoted, inside

	qemu    *exec.Cmd
	exited  chan struct{}
	console machine.Tail
}

func (l *Lab) virtual(ctx context.Context, h Hypervisor, n Node) (computer, error) {
	dir := filepath.Join(h.Dir, n.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	image := h.Image
	if n.Disk != nil {
		image = filepath.Join(dir, "copy.qcow2")
		if err := l.sandbox.Run(ctx, "cp", n.Disk.m.(*vm).disk, image); err != nil {
			return nil, fmt.Errorf("copy the disk of %s: %w", n.Disk.Name, err)
		}
	}
	n.UserData = fmt.Appendf(slices.Clone(n.UserData), "disable_root: false\nssh_authorized_keys: [%q]\n", h.KeyPublic)
	commandLine, err := h.Seed(ctx, dir, image, bridge, n)
	if err != nil {
		return nil, err
	}
	// What is shown to a user is run as it is, but with the accelerator that was
	// found to work, and with no more of the host than three machines may have.
	const printed = " -accel kvm -accel tcg "
	if !strings.Contains(commandLine, printed) {
		return nil, fmt.Errorf("the command line has no %q: %s", printed, commandLine)
	}
	accel := h.Accelerator
	share := " -m 1536"
	if accel == "tcg" {
		accel += ",tb-size=512"
		// Emulated processors wait for each other: two of them take a third more of
		// the host for the same work, and several times the time when it is busy.
		share += " -smp 1"
	}
	commandLine = strings.Replace(commandLine, printed, " -accel "+accel+" ", 1) + share
	return &vm{
		sandbox:     l.sandbox,
		name:        n.Name,
		commandLine: commandLine,
		disk:        filepath.Join(dir, n.InstanceID+".qcow2"),
		// One connection for all commands: to make one costs the guest a second.
		ssh: []string{"ssh", "-F", "none", "-i", h.Key, "-l", "root", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15",
			"-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o", "ControlPath=" + top + "/ssh-" + n.Name,
			n.Address.String(), "--"},
	}, nil
}

// Start runs QEMU, which outlives ctx.
func (v *vm) Start(ctx context.Context) error {
	if v.exited != nil {
		return fmt.Errorf("machine %s: started already", v.name)
	}
	v.qemu = v.sandbox.Command(context.Background(), "sh", "-c", v.commandLine)
	v.qemu.Stdout, v.qemu.Stderr = &v.console, &v.console
	if err := v.qemu.Start(); err != nil {
		return fmt.Errorf("machine %s: start QEMU: %w", v.name, err)
	}
	exited := make(chan struct{})
	v.exited = exited
	go func() {
		v.qemu.Wait()
		close(exited)
	}()
	return nil
}

// Poweroff shuts it down in good order; cut off when ctx ends first.
func (v *vm) Poweroff(ctx context.Context) error {
	if v.exited == nil {
		return nil
	}
	defer func() { v.exited = nil }()
	told := false
	err := Wait(ctx, v.name+" to power off", func(ctx context.Context) (bool, error) {
		select {
		case <-v.exited:
			return true, nil
		default:
		}
		if told {
			return false, errors.New("it is shutting down")
		}
		// Not to be waited for: a connection to who is gone takes a minute to break.
		_, err := output(v.Command(ctx, "systemctl", "--no-block", "poweroff"))
		told = err == nil
		return false, err
	})
	if err != nil {
		v.kill()
		return fmt.Errorf("machine %s was cut off: %w\n%s", v.name, err, v.Console())
	}
	return nil
}

// Cut implements computer.
func (v *vm) Cut() {
	if v.exited != nil {
		v.kill()
		v.exited = nil
	}
}

func (v *vm) kill() {
	syscall.Kill(-v.qemu.Process.Pid, syscall.SIGKILL)
	<-v.exited
}

// WaitRunning implements computer.
func (v *vm) WaitRunning(ctx context.Context) (failed []string, err error) {
	err = Wait(ctx, v.name+" to finish booting", func(ctx context.Context) (bool, error) {
		select {
		case <-v.exited:
			return false, errors.New("QEMU is gone")
		default:
		}
		// It exits non-zero in every state but "running".
		state, err := output(v.Command(ctx, "systemctl", "is-system-running"))
		switch strings.TrimSpace(state) {
		case "running":
			return true, nil
		case "degraded":
			units, err := output(v.Command(ctx, "systemctl", "list-units", "--state=failed", "--plain", "--no-legend"))
			for line := range strings.Lines(units) {
				if f := strings.Fields(line); len(f) > 0 {
					failed = append(failed, f[0])
				}
			}
			return err == nil, err
		}
		return false, fmt.Errorf("systemd is %q: %w", strings.TrimSpace(state), err)
	})
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, v.Console())
	}
	return failed, err
}

// Argv implements computer.
func (v *vm) Argv(argv ...string) ([]string, error) {
	return v.Command(context.Background(), argv...).Args, nil
}

// Command implements computer.
func (v *vm) Command(ctx context.Context, argv ...string) *exec.Cmd {
	words := append([]string{"env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}, argv...)
	return v.sandbox.Command(ctx, append(slices.Clone(v.ssh), shell.Quote(words...))...)
}

// Console implements computer.
func (v *vm) Console() string { return v.console.String() }
