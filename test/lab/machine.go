package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Node is what a machine gets besides the image: a NoCloud seed.
type Node struct {
	Name       string // of the machine in the lab and its host name
	InstanceID string // empty: one made from the name
	Address    netip.Addr
	Gateway    netip.Addr // of a container; the zero value is HostAddress
	UserData   []byte     // nil: none
	// Disk is a machine that is off, of whose disk this one gets a copy instead
	// of the image's: as when somebody clones a VM.
	Disk *Machine
}

// Machine is one of the lab's machines.
type Machine struct {
	Name    string
	Address netip.Addr
	Booted  time.Time // when its power was switched on, the last time

	lab *Lab
	m   computer
}

// computer is what a machine is made of: a container (machine.Machine) or a
// virtual machine.
type computer interface {
	Start(context.Context) error
	Poweroff(context.Context) error
	// Cut ends it at once, as a power cut does.
	Cut()
	// WaitRunning waits until systemd has finished booting, and returns the
	// units that failed.
	WaitRunning(context.Context) (failed []string, err error)
	// Command is a command that runs in it, as root; Argv its command line, from
	// the host.
	Command(ctx context.Context, argv ...string) *exec.Cmd
	Argv(argv ...string) ([]string, error)
	Console() string
}

// Start makes a machine and switches it on. It returns when its first process
// runs. Its disk lasts as long as the lab.
func (l *Lab) Start(ctx context.Context, n Node) (*Machine, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.machines[n.Name] != nil {
		return nil, fmt.Errorf("lab: there is a machine %s already", n.Name)
	}
	if n.InstanceID == "" {
		n.InstanceID = "iid-" + n.Name
	}

	computer, err := l.build(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("lab: machine %s: %w", n.Name, err)
	}
	m := &Machine{Name: n.Name, Address: n.Address, lab: l, m: computer}
	if err := m.PowerOn(ctx); err != nil {
		return nil, err
	}
	l.machines[n.Name] = m
	return m, nil
}

// container builds a machine whose disk is an overlay over the image.
func (l *Lab) container(ctx context.Context, n Node) (computer, error) {
	dir := filepath.Join(top, n.Name)
	root, upper, work, seed := filepath.Join(dir, "root"), filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "seed")
	for _, d := range []string{root, upper, work, seed} {
		if err := os.MkdirAll(l.sandbox.Path(d), 0o755); err != nil {
			return nil, err
		}
	}
	if n.Disk != nil {
		from := filepath.Join(top, n.Disk.Name, "upper")
		if err := l.sandbox.Run(ctx, "cp", "-a", from+"/.", upper); err != nil {
			return nil, fmt.Errorf("copy the disk of %s: %w", n.Disk.Name, err)
		}
	}
	if err := l.sandbox.Run(ctx, "mount", "-t", "overlay", "-o",
		"lowerdir="+l.disk+",upperdir="+upper+",workdir="+work, "overlay", root); err != nil {
		return nil, err
	}
	return &machine.Machine{
		Sandbox: l.sandbox,
		Name:    n.Name,
		Root:    root,
		Binds:   []machine.Bind{{Source: seed, Target: machine.SeedDir, ReadOnly: true}},
		Network: machine.Network{Veth: &machine.Veth{Name: "eth0", Peer: n.Name, Bridge: bridge}},
		// An image's /etc/fstab names its disk, of which a machine in a
		// container has only the files.
		BootArgs: []string{"systemd.mask=systemd-remount-fs.service"},
	}, l.seed(n)
}

// seed writes a container's seed.
func (l *Lab) seed(n Node) error {
	return cloudinit.Seed(l.sandbox.Path(top, n.Name, "seed"), cloudinit.SeedNode{
		InstanceID: n.InstanceID,
		Hostname:   n.Name,
		Interface:  "eth0",
		Address:    netip.PrefixFrom(n.Address, Network.Bits()),
		Gateway:    cmp.Or(n.Gateway, HostAddress),
		UserData:   n.UserData,
	})
}

// PowerOn boots a machine that is off, from the disk that it left.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.Booted = time.Now()
	return m.m.Start(ctx)
}

// Reseed gives a container that is off another seed, as when somebody corrects
// the user data of a machine.
func (m *Machine) Reseed(instanceID string, userData []byte) error {
	return m.lab.seed(Node{Name: m.Name, InstanceID: instanceID, Address: m.Address, UserData: userData})
}

// DetachSeed takes the seed out of a machine that is off, as when somebody
// removes its drive. A copy of the machine still gets one of its own.
func (m *Machine) DetachSeed() error {
	dir := m.lab.sandbox.Path(top, m.Name, "seed")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("lab: machine %s: %w", m.Name, err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("lab: machine %s: %w", m.Name, err)
		}
	}
	return nil
}

// Move gives a virtual machine that is off the DMI of other hardware, as when its
// disk is moved to a new VM. Its seed, and so its instance id, moves along.
func (m *Machine) Move(dmi uuid.UUID) error {
	v, ok := m.m.(*vm)
	if !ok {
		return fmt.Errorf("lab: machine %s: a container has no hardware of its own", m.Name)
	}
	before := v.commandLine
	v.commandLine = dmiOption.ReplaceAllString(before, " -uuid "+dmi.String()+" ")
	if v.commandLine == before {
		return fmt.Errorf("lab: machine %s: its command line has no -uuid: %s", m.Name, before)
	}
	return nil
}

// Poweroff shuts it down in good order; cut off when ctx ends first. Then the
// error names the jobs that systemd still had, and where what the machine said
// last is kept.
func (m *Machine) Poweroff(ctx context.Context) error {
	down, cut := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cut(nil)
	done := make(chan error, 1)
	go func() { done <- m.m.Poweroff(down) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	held := m.heldBy()
	cut(context.Cause(ctx))
	if err := <-done; err != nil {
		return fmt.Errorf("%w\n%w", held, err)
	}
	return nil // it was down in the meantime
}

// heldBy looks at a machine that does not go down, keeps what it sees in the
// cache, and tells it in short.
func (m *Machine) heldBy() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	jobs, err := m.Run(ctx, "systemctl", "list-jobs", "--no-pager", "--full")
	running := runningJobs(jobs)
	if err != nil {
		running = "systemd does not tell its jobs: " + err.Error()
	} else if running == "" {
		running = "systemd runs no job"
	}
	dir, err := cache.Dir()
	if err != nil {
		return errors.New(running)
	}
	dir = filepath.Join(dir, "held", m.Name)
	err = errors.Join(os.RemoveAll(dir), m.saveLogs(ctx, dir), m.save(dir, "jobs", jobs))
	if processes, psErr := m.Run(ctx, "ps", "axww", "-o", "pid,ppid,stat,wchan:20,etime,args"); psErr == nil {
		err = errors.Join(err, m.save(dir, "processes", processes))
	} else {
		err = errors.Join(err, psErr)
	}
	held := fmt.Errorf("machine %s does not power off, held by: %s; its journal, console, jobs and processes are in %s", m.Name, running, dir)
	return errors.Join(held, err)
}

// runningJobs are those that systemd works at, of what systemctl list-jobs
// prints: the others wait for them.
func runningJobs(list string) string {
	var running []string
	for line := range strings.Lines(list) {
		// JOB UNIT TYPE STATE
		if f := strings.Fields(line); len(f) == 4 && f[3] == "running" {
			running = append(running, f[1]+" ("+f[2]+")")
		}
	}
	return strings.Join(running, ", ")
}

// saveLogs writes its journal and its console into a folder. What cannot be had
// is left out and told in the error.
func (m *Machine) saveLogs(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	journal, err := m.Run(ctx, "journalctl", "--boot", "--no-pager", "--output=short-precise")
	return errors.Join(err, m.save(dir, "journal", journal), m.save(dir, "console", m.Console()))
}

func (m *Machine) save(dir, kind, text string) error {
	return os.WriteFile(filepath.Join(dir, m.Name+"."+kind), []byte(text), 0o600)
}

// Cut switches it off at once, as a power cut does. What it had written stays.
func (m *Machine) Cut() { m.m.Cut() }

// WaitRunning waits until systemd has finished booting. A failed unit is an
// error that names it and shows the end of its journal.
func (m *Machine) WaitRunning(ctx context.Context) error {
	failed, err := m.m.WaitRunning(ctx)
	if err != nil || len(failed) == 0 {
		return err
	}
	args := []string{"journalctl", "--boot", "--no-pager", "--lines=30"}
	for _, unit := range failed {
		args = append(args, "--unit="+unit)
	}
	journal, _ := m.Run(ctx, args...)
	return fmt.Errorf("machine %s: failed units: %s\n%s", m.Name, strings.Join(failed, ", "), journal)
}

// Run runs a command in the machine as root and returns what it printed. The
// error carries what it said on standard error.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	out, err := output(m.m.Command(ctx, argv...))
	if err != nil {
		return out, fmt.Errorf("machine %s: %s: %w", m.Name, strings.Join(argv, " "), err)
	}
	return out, nil
}

func output(cmd *exec.Cmd) (string, error) {
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(said.String()))
	}
	return string(out), err
}

// SQL runs a statement on XiVO's database and returns the rows, a line each,
// columns separated by a space. In the statement, :'a1' is the first argument
// as a text.
func (m *Machine) SQL(ctx context.Context, statement string, args ...string) (string, error) {
	argv := []string{"env", "PGPASSWORD=proformatique", "psql", "--quiet", "--no-align", "--tuples-only",
		"--field-separator= ", "--set=ON_ERROR_STOP=1", "--host=localhost", "--username=asterisk"}
	for i, arg := range args {
		argv = append(argv, fmt.Sprintf("--set=a%d=%s", i+1, arg))
	}
	cmd := m.m.Command(ctx, append(argv, "asterisk")...)
	cmd.Stdin = strings.NewReader(statement)
	out, err := output(cmd)
	if err != nil {
		return "", fmt.Errorf("machine %s: psql: %w", m.Name, err)
	}
	return strings.TrimSpace(out), nil
}

// Argv is the command line that runs argv in the machine, from the host.
func (m *Machine) Argv(argv ...string) ([]string, error) { return m.m.Argv(argv...) }

// ReadFile reads a file of the machine, as the machine sees it.
func (m *Machine) ReadFile(ctx context.Context, name string) (string, error) {
	return m.Run(ctx, "cat", "--", name)
}

// Console returns the last part of what it printed on its console.
func (m *Machine) Console() string { return m.m.Console() }

// Hang is how long anything in the lab may take: a boot, a join, a status that
// arrives. Idle, two cores need half a minute for the longest of them; a machine
// that is busy with other things may take many times that, and no more is taken
// for one that hangs.
const Hang = 15 * time.Minute

// Wait polls until done says so. When ctx ends first, the error of the last try
// is in the one returned.
func Wait(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	start := time.Now()
	var last error
	for {
		ok, err := done(ctx)
		if ok {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %w", time.Since(start).Round(time.Second), what, errors.Join(context.Cause(ctx), last))
		}
	}
}

// ExitCode returns the exit code that an error of Run stands for, -1 when the
// command did not end by itself.
func ExitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}
