package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Footprint is what a lab or a bake could leave on this machine, one line for
// each thing, sorted.
type Footprint []string

// TakeFootprint looks at the machine as it is now.
func TakeFootprint(ctx context.Context) (Footprint, error) {
	var all Footprint
	add := func(kind string, lines ...string) {
		for _, line := range lines {
			if line = strings.TrimSpace(line); line != "" {
				all = append(all, kind+" "+line)
			}
		}
	}

	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		// ID PARENT MAJ:MIN ROOT MOUNTPOINT OPTIONS [...] - TYPE SOURCE ...
		before, after, _ := strings.Cut(line, " - ")
		if pre, post := strings.Fields(before), strings.Fields(after); len(pre) > 4 && len(post) > 1 {
			add("mount", pre[4]+" of "+post[1]+" ("+post[0]+")")
		}
	}
	for kind, pattern := range map[string]string{
		"network namespace": "/run/netns/*",
		"network device":    "/sys/class/net/*",
		"loop device":       "/sys/block/loop*/loop/backing_file",
		"control group":     "/sys/fs/cgroup/*/xivo-sandbox-*",
		"control group v2":  "/sys/fs/cgroup/xivo-sandbox-*",
		"temporary file":    filepath.Join(os.TempDir(), "mmdebstrap.*"),
	} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		add(kind, names...)
	}
	for _, command := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.CommandContext(ctx, command).Output()
		if errors.Is(err, exec.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", command, err)
		}
		for line := range strings.Lines(string(out)) {
			if strings.HasPrefix(line, "-") {
				add("firewall rule", command+" "+line)
			}
		}
	}
	for _, name := range []string{"/proc/sys/net/ipv4/ip_forward"} {
		value, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		add("setting", name+" = "+string(value))
	}
	processes, err := labProcesses()
	if err != nil {
		return nil, err
	}
	add("process", processes...)
	slices.Sort(all)
	return all, nil
}

// labProcesses are those in a control group of a sandbox, which is where
// everything of a lab runs, and by name what a lab runs outside of them. What
// else comes and goes on this machine is not ours to look at.
func labProcesses() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []string
	for _, e := range entries {
		dir := filepath.Join("/proc", e.Name())
		comm, err := os.ReadFile(dir + "/comm")
		if err != nil {
			continue // not a process, or one that just ended
		}
		groups, _ := os.ReadFile(dir + "/cgroup")
		name := strings.TrimSpace(string(comm))
		if strings.Contains(string(groups), "/xivo-sandbox-") || slices.Contains([]string{"systemd-nspawn", "slirp4netns", "mmdebstrap", "packer", "packer-plugin-xi", "packer-plugin-qe", "qemu-system-x86"}, name) {
			found = append(found, fmt.Sprintf("%s %s", e.Name(), name))
		}
	}
	return found, nil
}

// Leftovers returns what is there now and was not before, an empty list when
// all is as it was. What is just going away gets ten seconds for it.
func (before Footprint) Leftovers(ctx context.Context) (Footprint, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for {
		now, err := TakeFootprint(ctx)
		if err != nil {
			return nil, err
		}
		left := slices.DeleteFunc(now, func(line string) bool {
			_, there := slices.BinarySearch(before, line)
			return there
		})
		if len(left) == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return left, nil
		case <-time.After(200 * time.Millisecond):
		}
	}
}
