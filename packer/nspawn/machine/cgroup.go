package machine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// cgroups are the control groups of a sandbox: one folder in each hierarchy in
// which systemd tracks processes. Two machines in one group would write over
// each other. No namespace takes them down, so a janitor does.
type cgroups struct {
	dirs    []string
	janitor *exec.Cmd
	release io.Closer
}

// janitorScript waits until this process has ended, however it ended, then up to
// 30 seconds for the groups to be empty, and removes them. It fails when they are
// still there. It is a shell's, because this process cannot do it.
const janitorScript = `read -r _
for i in $(seq 300); do
	find "$@" -depth -type d -exec rmdir {} + 2>/dev/null
	[ -z "$(ls -d "$@" 2>/dev/null)" ] && exit 0
	sleep 0.1
done
exit 1`

const (
	// RunVariable, where it is in our environment, is part of the names of the
	// control groups that we make: whoever starts several processes finds theirs.
	RunVariable = "XIVO_SANDBOX_RUN"
	// ControlGroupPrefix begins the name of a sandbox's control group. The run
	// follows, if there is one, our process id and a random number, with dashes.
	ControlGroupPrefix = "xivo-sandbox-"
)

func newCgroups() (*cgroups, error) {
	homes, err := cgroupHomes()
	if err != nil {
		return nil, fmt.Errorf("machine: find the control groups: %w", err)
	}
	if len(homes) == 0 {
		return nil, errors.New("machine: neither cgroup2 nor the systemd hierarchy of cgroup v1 is mounted: systemd in a machine cannot run without")
	}

	// One name in all hierarchies: on a hybrid host, nspawn copies the tree of
	// one to the same place in the other.
	c := &cgroups{}
	name := ControlGroupPrefix
	if run := os.Getenv(RunVariable); run != "" {
		name += run + "-"
	}
	name += fmt.Sprintf("%d-%08x", os.Getpid(), rand.Uint32())
	for _, home := range homes {
		dir := filepath.Join(home, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			c.close()
			return nil, fmt.Errorf("machine: make a control group: %w", err)
		}
		c.dirs = append(c.dirs, dir)
	}
	c.janitor = exec.Command("sh", append([]string{"-c", janitorScript, "sh"}, c.dirs...)...)
	c.janitor.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.release, err = c.janitor.StdinPipe(); err != nil {
		return nil, err
	}
	if err := c.janitor.Start(); err != nil {
		c.janitor = nil
		c.close()
		return nil, fmt.Errorf("machine: start the janitor of the control groups: %w", err)
	}
	return c, nil
}

// machine makes the groups of one machine and returns their folders.
func (c *cgroups) machine(name string) ([]string, error) {
	var dirs []string
	for _, dir := range c.dirs {
		dir = filepath.Join(dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("machine %s: make its control group: %w", name, err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

func (c *cgroups) close() error {
	if c.janitor == nil {
		for _, dir := range c.dirs {
			os.Remove(dir)
		}
		return nil
	}
	c.release.Close()
	if err := c.janitor.Wait(); err != nil {
		return fmt.Errorf("machine: a process is still in %s: %w", strings.Join(c.dirs, ", "), err)
	}
	return nil
}

// cgroupHomes returns the folder of our own control group in cgroup2 and in the
// systemd hierarchy of v1: a host has one of them or, hybrid, both.
func cgroupHomes() ([]string, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	groups, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	return parseCgroupHomes(string(mountinfo), string(groups)), nil
}

func parseCgroupHomes(mountinfo, groups string) []string {
	own := map[string]string{} // hierarchy -> our group in it
	for line := range strings.Lines(groups) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			own[f[1]] = f[2]
		}
	}

	var homes []string
	seen := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		// ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [...] - TYPE SOURCE SUPEROPTIONS
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		pre, post := strings.Fields(before), strings.Fields(after)
		if !ok || len(pre) < 5 || len(post) < 3 {
			continue
		}
		var hierarchy string
		switch {
		case post[0] == "cgroup2":
		case post[0] == "cgroup" && strings.Contains(post[2]+",", "name=systemd,"):
			hierarchy = "name=systemd"
		default:
			continue
		}
		group, member := own[hierarchy]
		if !member || seen[hierarchy] {
			continue
		}
		seen[hierarchy] = true
		// In a container the mount shows a part of the hierarchy only.
		if below, ok := strings.CutPrefix(group, strings.TrimSuffix(pre[3], "/")); ok {
			group = below
		}
		homes = append(homes, filepath.Join(pre[4], group))
	}
	return homes
}
