package lab

import (
	"context"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Run is one run of a program that boots machines: it finds what the program,
// and whatever it started, left on this machine. Processes and control groups
// carry the run's name. What cannot carry one (mounts, devices, the firewall) is
// compared with what was there when the run began, as far as a lab or a bake
// makes such things: what another program or another lab does at the same time
// is not seen.
type Run struct {
	name   string
	before host
}

// BeginRun names this process's run: all that it starts from now on belongs to
// it.
func BeginRun(ctx context.Context) (*Run, error) {
	r := NewRun()
	r.before = lookAtHost(ctx)
	return r, os.Setenv(machine.RunVariable, r.name)
}

// NewRun names a run that a child of this process is to be: the child gets
// Environment.
func NewRun() *Run { return &Run{name: strings.ToLower(rand.Text()[:12])} }

// Environment is what makes a process, and all that it starts, part of the run.
func (r *Run) Environment() string { return machine.RunVariable + "=" + r.name }

// goingDeadline is how long what is just going away may take.
const goingDeadline = time.Minute

// Leftovers returns what the run left, a line for each thing; nothing when all is
// as it was.
func (r *Run) Leftovers(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, goingDeadline)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		left, err := r.Traces(ctx)
		if err != nil || len(left) == 0 {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-tick.C:
		}
	}
}

// Traces returns what there is of the run at this moment, sorted.
func (r *Run) Traces(ctx context.Context) ([]string, error) {
	all, err := r.processes()
	if err != nil {
		return nil, err
	}
	all = append(all, r.controlGroups()...)
	if r.before != nil {
		all = append(all, lookAtHost(ctx).since(r.before)...)
	}
	slices.Sort(all)
	return all, nil
}

// processes are those that have the run's name in their environment, and those
// in the control group of a sandbox of it: what runs in a machine has another
// environment.
func (r *Run) processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // it just ended
		}
		groups, _ := os.ReadFile(dir + "/cgroup")
		environment, _ := os.ReadFile(dir + "/environ")
		name := strings.TrimSpace(string(comm))
		switch {
		case strings.Contains(string(groups), "/"+machine.ControlGroupPrefix+r.name+"-"):
		case name == "go": // it counts its uses in the background
			continue
		case !slices.Contains(strings.Split(string(environment), "\x00"), r.Environment()):
			continue
		}
		found = append(found, fmt.Sprintf("process %s %s", e.Name(), name))
	}
	return found, nil
}

// controlGroups are those of sandboxes of the run, in every hierarchy.
func (r *Run) controlGroups() []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || !d.IsDir(): // groups come and go
		case strings.HasPrefix(d.Name(), machine.ControlGroupPrefix+r.name+"-"):
			found = append(found, "control group "+name)
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// host is what a lab or a bake could leave on a machine without a name of its
// run, by kind. A kind that could not be looked at is not in it.
type host map[string][]string

// since returns what was not there before, a line for each thing.
func (now host) since(before host) []string {
	var fresh []string
	for kind, lines := range now {
		known, looked := before[kind]
		if !looked {
			continue
		}
		for _, line := range lines {
			if !slices.Contains(known, line) {
				fresh = append(fresh, kind+" "+line)
			}
		}
	}
	return fresh
}

func lookAtHost(ctx context.Context) host {
	h := host{}
	look := func(kind string, find func() ([]string, error)) {
		if lines, err := find(); err == nil {
			h[kind] = lines
		}
	}
	look("mount", mounts)
	look("loop device", loopDevices)
	look("network device", func() ([]string, error) { return labNames("/sys/class/net") })
	look("network namespace", func() ([]string, error) { return labNames("/run/netns") })
	look("temporary file", func() ([]string, error) { return filepath.Glob(filepath.Join(os.TempDir(), "mmdebstrap.*")) })
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		look(command, func() ([]string, error) { return firewallRules(ctx, command) })
	}
	look("setting", func() ([]string, error) {
		value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		return []string{"net.ipv4.ip_forward = " + strings.TrimSpace(string(value))}, err
	})
	return h
}

// labPlaces are the folders in which a lab or a bake mounts, or from which.
func labPlaces() []string {
	places := []string{top, "/run/machine", os.TempDir()}
	if dir, err := cache.Dir(); err == nil {
		places = append(places, dir)
	}
	if dir, err := os.Getwd(); err == nil {
		places = append(places, dir)
	}
	return places
}

func below(places []string, name string) bool {
	return slices.ContainsFunc(places, func(place string) bool {
		return name == place || strings.HasPrefix(name, strings.TrimSuffix(place, "/")+"/")
	})
}

// mounts are those in our mount namespace; a sandbox's are in its own.
func mounts() ([]string, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	places := labPlaces()
	var found []string
	for line := range strings.Lines(string(raw)) {
		// ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [...] - TYPE SOURCE ...
		before, after, _ := strings.Cut(line, " - ")
		pre, post := strings.Fields(before), strings.Fields(after)
		if len(pre) > 4 && len(post) > 1 && (below(places, pre[4]) || below(places, pre[3])) {
			found = append(found, pre[4]+" of "+post[1]+" ("+post[0]+")")
		}
	}
	return found, nil
}

// loopDevices are those of disks of a lab or a bake that nobody has mounted: a
// sandbox of another run has its own mounted, and its unmounting detaches it.
func loopDevices() ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	places := labPlaces()
	var found []string
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // just detached
		}
		device := "/dev/" + filepath.Base(filepath.Dir(filepath.Dir(file)))
		disk := strings.TrimSpace(string(raw))
		if below(places, disk) && !mountedAnywhere(device) {
			found = append(found, device+" of "+disk)
		}
	}
	return found, nil
}

// mountedAnywhere says whether a process sees a mount of that device.
func mountedAnywhere(device string) bool {
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	return slices.ContainsFunc(tables, func(table string) bool {
		raw, err := os.ReadFile(table)
		return err == nil && strings.Contains(string(raw), " "+device+" ")
	})
}

// labNames are the entries of a folder that are named as a lab or a bake names
// its network devices and namespaces.
func labNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		for _, pattern := range []string{bridge, "tap0", "packer", "xivo", "node[0-9]*", "crash[0-9]*"} {
			if match, _ := filepath.Match(pattern, e.Name()); match {
				found = append(found, e.Name())
			}
		}
	}
	return found, nil
}

// firewallRules are those of the host that our program or a stand-in sets in a
// machine.
func firewallRules(ctx context.Context, command string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second) // it waits for whoever holds the lock
	defer cancel()
	out, err := exec.CommandContext(ctx, command).Output()
	var found []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.Contains(line, "XIVO-MESH") || strings.Contains(line, "--dport 5060 -j DROP") {
			found = append(found, line)
		}
	}
	return found, err
}
