package consul

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// state is what Consul keeps of who it is and whom it knows. The master token
// and the files that XiVO's daemons read stand beside it, and stay.
var state = []string{"raft", "serf", "services", "checks", "tmp", "node-id"}

// NoState is /var/lib/consul without what Consul remembers: raft (KV and ACLs
// with it), serf with its keyrings, registered services and checks, and the
// node id. Nothing else is touched there. Apply refuses while Consul runs; see
// StateInUse.
func NoState(p *platform.Platform) engine.Resource {
	var names []string
	for _, name := range state {
		names = append(names, filepath.Join(platform.ConsulDataDir, name))
	}
	absent := files.Absent(p.Root, names...)
	diff := func(ctx context.Context) ([]string, error) {
		found, err := absent.Diff(ctx)
		if err != nil {
			return nil, fmt.Errorf("consul: empty its state: %w", err)
		}
		for i := range found {
			found[i] += ": still there"
		}
		return found, nil
	}
	apply := func(ctx context.Context) error {
		if err := StateInUse(p); err != nil {
			return err
		}
		if err := absent.Apply(ctx); err != nil {
			return fmt.Errorf("consul: empty its state: %w", err)
		}
		return nil
	}
	return engine.New(diff, apply)
}

// StateInUse is an error that names the process while one has files of
// /var/lib/consul open: Consul would go on with what was deleted.
func StateInUse(p *platform.Platform) error {
	if err := notRunning(p); err != nil {
		return fmt.Errorf("consul: empty its state: %w", err)
	}
	return nil
}

// notRunning is an error when a process uses Consul's data folder. A server has
// its raft log open as long as it lives, deleted or not; command lines tell
// less, since they name the configuration only.
func notRunning(p *platform.Platform) error {
	dir, err := filepath.EvalSymlinks(p.Path(platform.ConsulDataDir))
	if err != nil {
		return err
	}
	open, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return err
	}
	if len(open) == 0 {
		return errors.New("/proc tells of no process, so nobody knows whether Consul runs")
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return err
	}
	for _, fd := range open {
		target, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(target, dir+"/") {
			continue // gone meanwhile, or of no interest
		}
		proc := filepath.Dir(filepath.Dir(fd))
		// The path of a process in a container is that in its own root.
		if theirs, err := os.Readlink(proc + "/ns/pid"); err != nil || theirs != ours {
			continue
		}
		name, _ := limit.ReadFile(proc+"/comm", limit.File)
		return fmt.Errorf("%s (process %s) still runs on %s; stop it first", strings.TrimSpace(string(name)), filepath.Base(proc), dir)
	}
	return nil
}
