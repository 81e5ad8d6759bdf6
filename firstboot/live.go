package firstboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Live takes a running server through all phases. Telephony is down from the
// stop to the start of XiVO's services; they are started whatever happens in
// between. The returned duration is how long they were down.
func (n *Node) Live(ctx context.Context) (_ []Change, down time.Duration, err error) {
	if err := n.exportLive(ctx); err != nil {
		return nil, 0, err
	}
	// From here on, a boot resumes what a power cut ends.
	units, err := installed(ctx, n)
	if err == nil {
		err = ensure(ctx, units)
	}
	if err != nil {
		return nil, 0, err
	}

	command := n.Platform.Traits.ServiceCommand
	brokers := []string{"rabbitmq-server", "consul"}
	stopped := time.Now()
	defer func() {
		// Also when ctx was cancelled: this is what must not be left undone.
		start, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
		defer cancel()
		for _, service := range brokers {
			err = errors.Join(err, n.Platform.Init.Start(start, service))
		}
		if _, startErr := platform.Run(start, command, "start"); startErr != nil {
			err = errors.Join(err, fmt.Errorf("start XiVO: %w; run `%s start`", startErr, command))
		}
		down = time.Since(stopped)
	}()
	if _, err := platform.Run(ctx, command, "stop"); err != nil {
		return nil, 0, fmt.Errorf("stop XiVO: %w", err)
	}
	// That leaves both of them running. What XiVO stored until it had stopped is
	// to be in the export, too.
	if n.exported {
		err := n.exportKV(ctx)
		n.reset()
		if err != nil {
			return nil, 0, err
		}
	}
	for _, service := range brokers {
		if err := n.Platform.Init.Stop(ctx, service); err != nil {
			return nil, 0, err
		}
	}

	changes, err := n.Run(ctx, BecomePhase)
	n.Guard(ctx)
	for _, service := range brokers {
		err = errors.Join(err, n.Platform.Init.Start(ctx, service))
	}
	if err != nil {
		return changes, 0, err
	}
	more, err := n.Run(ctx, SettlePhase)
	if err == nil {
		n.GuardNewcomer(ctx)
	}
	return append(changes, more...), 0, err
}

// Stay starts the watch of a node that has just settled.
func (n *Node) Stay(ctx context.Context) error {
	if !n.Platform.HasSystemd() {
		n.Log.Warn("no systemd here: run `xivo-firstboot converge --watch` from your init system")
		return nil
	}
	return n.Platform.Init.Start(ctx, "xivo-mesh")
}

// exportLive exports the KV while Consul runs and XiVO does not need to stop.
func (n *Node) exportLive(ctx context.Context) error {
	if n.Journal.Finished(BecomePhase) {
		return nil // Consul's state stays
	}
	// One that does not run is read by become, from its files.
	if up, err := n.Platform.Init.Active(ctx, "consul"); err != nil || !up {
		return err
	}
	defer n.reset() // token and address are about to change
	// Become's own step, while there is a Consul to ask.
	i := slices.IndexFunc(BecomePhase.Steps, func(s Step) bool { return s.Name == kvExport })
	step := BecomePhase.Steps[i]
	step.Open = func(context.Context, *Node) (Resource, error) { return n.export(n.exportKV), nil }
	_, err := n.runStep(ctx, BecomePhase.Name, step, i+1, len(BecomePhase.Steps))
	return err
}

// exportKV exports the KV of the Consul that runs.
func (n *Node) exportKV(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := n.Consul(ctx)
	if err != nil {
		return err
	}
	return n.replaceExport(func(file string) error { return c.Export(ctx, file) })
}

// replaceExport puts an export in the place of an older one, which stays until
// then: it may be all that there is. Where it is, for sure, it is completed by
// what was stored since.
func (n *Node) replaceExport(export func(file string) error) error {
	file := n.Platform.Path(exportFile)
	beside := file + ".new"
	if err := os.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := export(beside); err != nil {
		return err
	}
	n.exported = true
	if n.emptied() {
		return errors.Join(consul.CompleteExport(file, beside), os.Remove(beside))
	}
	return os.Rename(beside, file)
}
