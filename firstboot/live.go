package firstboot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
)

// Ran is how a run on a server that works ended.
type Ran struct {
	// Interrupted says that telephony was stopped, and Down for how long.
	Interrupted bool
	Down        time.Duration
	// Waits is why no pass was made; "" where one was.
	Waits string
	// Pass is the pass of converge.
	Pass converge.Result
}

// WillInterrupt says whether a run that was decided like that stops telephony. A
// copy carries the original's journal, so Settled alone does not tell.
func WillInterrupt(n *node.Node, action node.Action) bool {
	return action != node.Unchanged || !n.Settled()
}

// Run takes a running server through all phases, under the lock, and starts the
// watch. Telephony is interrupted only where the identity is not settled yet.
func Run(ctx context.Context, n *node.Node, confirmed bool) (ran Ran, err error) {
	if err := n.LockWait(ctx); err != nil {
		return ran, err
	}
	if _, _, err := begin(ctx, n, confirmed); err != nil {
		return ran, err
	}
	if !n.Settled() {
		ran.Down, err = interrupt(ctx, n)
		if ran.Interrupted = ran.Down > 0; err != nil {
			return ran, err
		}
	}
	if ran.Waits = converge.Waits(ctx, n); ran.Waits != "" {
		return ran, startWatch(ctx, n)
	}
	var m converge.Memory
	defer m.Close()
	ran.Pass, err = converge.Converge(ctx, n, &m)
	return ran, errors.Join(err, startWatch(ctx, n))
}

// startWatch starts the watch of a node that has just settled.
func startWatch(ctx context.Context, n *node.Node) error {
	if !n.Platform.HasSystemd() {
		n.Log.Warn("no systemd here: run `xivo-firstboot converge --watch` from your init system")
		return nil
	}
	if err := n.Platform.Init.Start(ctx, converge.OverlayUnit); err != nil {
		return err
	}
	return n.Platform.Init.Start(ctx, "xivo-mesh")
}

// interrupt becomes and settles. Telephony is down from the stop to the start of
// XiVO's services; they are started whatever happens in between. The duration is
// how long they were down; 0 where nothing was stopped.
func interrupt(ctx context.Context, n *node.Node) (down time.Duration, err error) {
	if err := exportLive(ctx, n); err != nil {
		return 0, err
	}
	// From here on, a boot resumes what a power cut ends.
	installed, err := sealing.Installed(n)
	if err == nil {
		err = engine.Ensure(ctx, installed)
	}
	if err != nil {
		return 0, err
	}

	stopped := time.Now()
	defer func() {
		// Also when ctx was cancelled: this is what must not be left undone.
		err = errors.Join(err, startAll(context.WithoutCancel(ctx), n))
		down = time.Since(stopped)
	}()
	if err := stopAll(ctx, n); err != nil {
		return 0, err
	}
	_, err = n.Runner().Run(ctx, become.Phase)
	converge.Guard(ctx, n)
	for _, role := range brokers {
		err = errors.Join(err, n.Platform.Init.Start(ctx, n.Platform.Service(role)))
	}
	if err != nil {
		return 0, err
	}
	if _, err := n.Runner().Run(ctx, become.SettlePhase); err != nil {
		return 0, err
	}
	return 0, nil
}

// brokers are what XiVO's own command leaves running.
var brokers = []platform.Role{platform.Broker, platform.Consul}

// stopAll stops XiVO, and then the brokers, which XiVO's command leaves running
// (docs/xivo/host.md, xivo-service).
func stopAll(ctx context.Context, n *node.Node) error {
	if _, err := platform.Run(ctx, n.Platform.Traits.ServiceCommand, "stop"); err != nil {
		return fmt.Errorf("stop XiVO: %w", err)
	}
	// What XiVO stored until it had stopped is to be in the export, too.
	if n.KV.Fresh() {
		err := n.KV.FromConsul(ctx)
		n.Servers.Redial()
		if err != nil {
			return err
		}
	}
	for _, role := range brokers {
		if err := n.Platform.Init.Stop(ctx, n.Platform.Service(role)); err != nil {
			return err
		}
	}
	return nil
}

// startTime is how long all services may take to start.
const startTime = 5 * time.Minute

func startAll(ctx context.Context, n *node.Node) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for _, role := range brokers {
		err = errors.Join(err, n.Platform.Init.Start(ctx, n.Platform.Service(role)))
	}
	command := n.Platform.Traits.ServiceCommand
	if _, startErr := platform.Run(ctx, command, "start"); startErr != nil {
		err = errors.Join(err, fmt.Errorf("start XiVO: %w; run `%s start`", startErr, command))
	}
	return err
}

// exportLive exports the KV while Consul runs and XiVO does not need to stop.
func exportLive(ctx context.Context, n *node.Node) error {
	if n.Journal.Became() {
		return nil // Consul's state stays
	}
	// One that does not run is read by become, from its files.
	if up, err := n.Platform.Init.Active(ctx, n.Platform.Service(platform.Consul)); err != nil || !up {
		return err
	}
	defer n.Servers.Redial() // token and address are about to change
	for i, s := range become.Phase.Steps {
		if s.Name == kvexport.ExportStep {
			return n.Runner().Step(ctx, become.Phase, i).Err
		}
	}
	return nil
}
