package firstboot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Verdict is what becomes of those who wait for a unit of the boot: Consul and
// RabbitMQ for become, XiVO's daemons for settle.
type Verdict int

const (
	// GoOn: they start.
	GoOn Verdict = iota
	// Wait: they start, and a person has something to do before this machine is a
	// node of a mesh.
	Wait
	// Hold: they do not start. This machine has no identity of its own yet, or
	// Consul and the broker do not have it.
	Hold
	// Refuse: what a person claimed is not so. Nothing was looked at any further.
	Refuse
)

// Outcome is how a unit of the boot ended.
type Outcome struct {
	Verdict Verdict
	// Why is nil where there is nothing to say.
	Why error
}

func goOn() Outcome           { return Outcome{} }
func waits(why error) Outcome { return Outcome{Wait, why} }
func holds(why error) Outcome { return Outcome{Hold, why} }
func orGoOn(err error) Outcome {
	if err == nil {
		return goOn()
	}
	return holds(err)
}

// Claim is what a person says of a machine that may be a copy.
type Claim int

const (
	NoClaim Claim = iota
	// IsCopy: it is, although only one of two signs says so.
	IsCopy
	// IsSame: it is the machine that it was, although one of two signs says
	// otherwise.
	IsSame
)

// bootTime is how long one unit may work; systemd's own limit is longer.
const bootTime = 8 * time.Minute

// BootBecome is the unit that Consul and RabbitMQ wait for. All of the policy of who
// is held back at boot is here; docs/boot.md tells it to people:
//
//   - A machine that must not work before it has an identity of its own is held until
//     it has: a sealed image, and a copy that began to become.
//   - Every other machine worked before and works on, whatever cannot be read or
//     done: one that nobody asked to change, one that was adopted, one that became.
//   - A machine in doubt works, and is kept out of the mesh.
func (m Machine) BootBecome(ctx context.Context, claim Claim) Outcome {
	return m.boot(ctx, func(ctx context.Context, n *node.Node) Outcome { return bootBecome(ctx, n, claim) })
}

// BootSettle is the unit that XiVO's daemons wait for, after become and with Consul
// and RabbitMQ up.
func (m Machine) BootSettle(ctx context.Context) Outcome { return m.boot(ctx, bootSettle) }

func (m Machine) boot(ctx context.Context, phase func(context.Context, *node.Node) Outcome) Outcome {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	n, err := m.Open()
	switch {
	case err != nil && node.MustBecome(m.Root):
		return holds(err)
	case err != nil:
		return waits(fmt.Errorf("nothing is held back for it, but look: %w", err))
	}
	defer n.Close()
	return phase(ctx, n)
}

func bootBecome(ctx context.Context, n *node.Node, claim Claim) Outcome {
	action, why := n.Decide(claim == IsCopy)
	if claim == IsSame && action != node.InDoubt {
		return Outcome{Refuse, fmt.Errorf("become --same: nothing is in doubt here: %s", why)}
	}
	switch action {
	case node.Unchanged, node.LeaveAlone:
		// Nothing is asked of the document, the lock or the servers: a node that
		// once worked is not held back by any of them.
		n.Log.Info("become: "+string(action), "why", why)
		return goOn()
	case node.InDoubt:
		return inDoubt(ctx, n, claim, why)
	}
	adopted := action == node.Adopt || action == node.Resume && n.Identity().Adopted
	return unlessItWorked(adopted, takeOn(ctx, n, claim))
}

// takeOn becomes.
func takeOn(ctx context.Context, n *node.Node, claim Claim) Outcome {
	// Both start after this at boot. One that is started again later on a server
	// where XiVO runs, although a run failed, is not held back.
	for _, role := range brokers {
		broker := n.Platform.Service(role)
		running, err := n.Platform.Init.Active(ctx, broker)
		if err != nil {
			return holds(err)
		}
		if running {
			run := "xivo-firstboot run"
			if claim == IsCopy {
				run += " --confirm"
			}
			return waits(fmt.Errorf("become: %s runs, so this is no boot, and nothing was changed: use `%s`", broker, run))
		}
	}
	if o := locked(n); o.Verdict != GoOn {
		return o
	}
	action, why, err := begin(ctx, n, claim == IsCopy)
	n.Log.Info("become: "+string(action), "why", why)
	if errors.Is(err, ErrNotDecided) {
		return waits(err)
	}
	if err != nil {
		return holds(err)
	}
	_, err = n.Runner().Run(ctx, become.Phase)
	return orGoOn(err)
}

// inDoubt keeps the mesh parts of a machine down that may be a copy, unless a
// person says that it is none.
func inDoubt(ctx context.Context, n *node.Node, claim Claim, why string) Outcome {
	if claim == IsSame {
		if o := locked(n); o.Verdict != GoOn {
			return o
		}
		n.Log.Info("become: the same machine; it goes on as the node that it was")
		return orGoOn(n.Moved())
	}
	if running, err := n.Platform.Init.Active(ctx, n.Platform.Service(platform.Consul)); err == nil && !running {
		converge.Isolate(ctx, n)
	}
	return waits(errors.New(why))
}

func bootSettle(ctx context.Context, n *node.Node) Outcome {
	if n.Journal == nil || n.Settled() {
		n.Log.Info("settle: nothing to do")
		return goOn()
	}
	if action, why := n.Decide(false); action != node.Unchanged {
		return waits(fmt.Errorf("settle: become comes first, so nothing was changed: %s", why))
	}
	return unlessItWorked(n.Identity().Adopted, settle(ctx, n))
}

// settle puts back what become took out.
func settle(ctx context.Context, n *node.Node) Outcome {
	if n.Config() == nil {
		return holds(fmt.Errorf("settle: the document that this node began with cannot be read: %w", n.Document.Err))
	}
	if o := locked(n); o.Verdict != GoOn {
		return o
	}
	_, err := n.Runner().Run(ctx, become.SettlePhase)
	return orGoOn(err)
}

// locked takes the lock. Whoever has it may do what this unit would.
func locked(n *node.Node) Outcome {
	err := n.Lock()
	if errors.Is(err, node.ErrBusy) {
		return waits(err)
	}
	return orGoOn(err)
}

// unlessItWorked holds nobody on a server that was adopted: it worked before, and
// works on.
func unlessItWorked(adopted bool, o Outcome) Outcome {
	if !adopted || o.Verdict != Hold {
		return o
	}
	return waits(fmt.Errorf("this server worked before it was made a node, so nothing is held back, but look, then `xivo-firstboot run`: %w", o.Why))
}
