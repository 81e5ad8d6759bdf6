package firstboot

import (
	"context"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// Planned is what the phase that comes next would do.
type Planned struct {
	// Phase is its name; "" where a person has to say something first.
	Phase string
	// Once: other phases follow it.
	Once   bool
	Report engine.Report
	// Why is why that phase is next, or why there is none.
	Why string
	// Notices are what a person should know of this server.
	Notices []string
}

// Plan plans the phase that comes next: the others find what it leaves. On a
// server that `run` would make a node, that is become, with an identity that the
// run decides anew. Nothing is changed. What was planned before an error is
// returned with it.
func Plan(ctx context.Context, n *node.Node) (Planned, error) {
	action, why, err := prepare(ctx, n, false)
	if err != nil || action == node.InDoubt {
		return Planned{Why: why}, err
	}
	if action == node.LeaveAlone {
		return Planned{Why: why}, n.Document.Err
	}
	for _, p := range []engine.Phase[*node.Node]{become.Phase, become.SettlePhase} {
		if n.Journal.Done(p.Name) {
			continue
		}
		report, err := n.Runner().Plan(ctx, p)
		if action == node.TakeOn {
			withoutIdentity(report, n.Identity())
		}
		return Planned{Phase: p.Name, Once: true, Report: report, Why: why}, err
	}
	if waits := converge.Waits(ctx, n); waits != "" {
		return Planned{Why: waits}, nil
	}
	var m converge.Memory
	defer m.Close()
	report, notices, err := converge.Plan(ctx, n, &m)
	return Planned{Phase: converge.Phase.Name, Report: report, Why: why, Notices: notices}, err
}

// withoutIdentity takes out of a plan what the run decides anew.
func withoutIdentity(report engine.Report, id node.Identity) {
	unknown := strings.NewReplacer(id.UUID.String(), "a new UUID", id.Name, "a new name")
	for _, e := range report {
		for i := range e.Changes {
			e.Changes[i] = unknown.Replace(e.Changes[i])
		}
	}
}

// Examine looks at everything that makes this node one of its mesh, and changes
// nothing. Each finding is handed to told as soon as it is there.
func Examine(ctx context.Context, n *node.Node, told func(converge.Finding)) {
	converge.Examine(ctx, n, keptForLife(), told)
}
