// Package converge makes a node match its mesh, again and again. A pass looks once
// (observe, a View), says what follows (decide, which is pure), brings the node
// there (the phase's steps), and listens who answers; the status tells how it
// ended. Its subject is the pass; only firstboot imports it.
package converge

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// Memory is what a process knows from one pass to the next. Whoever makes passes
// owns it, and closes it. The zero value is that of a process which made none.
type Memory struct {
	hosts  node.Hosts
	canary *rabbitmq.Canary
}

// Close ends the canary.
func (m *Memory) Close() {
	if m.canary != nil {
		m.canary.Close()
		m.canary = nil
	}
}

// hostsByAddress are the hosts that a person wrote, by the address to which they lead.
func (m *Memory) hostsByAddress(ctx context.Context, hosts []string) map[string][]string {
	if m.hosts == nil {
		m.hosts = node.Hosts(map[string][]netip.Addr{})
	}
	return m.hosts.ByAddress(ctx, hosts)
}

// openCanary returns the open canary; a broken one is opened again.
func (m *Memory) openCanary(ctx context.Context, n *node.Node) (*rabbitmq.Canary, error) {
	if m.canary != nil {
		select {
		case err := <-m.canary.Done():
			n.Log.Warn("the canary's connection ended, opening it again", "error", err)
			m.Close()
		default:
			return m.canary, nil
		}
	}
	var err error
	m.canary, err = rabbitmq.OpenCanary(ctx, rabbitmq.LocalAMQP, n.Identity().UUID.String())
	return m.canary, err
}

// Pass is one look at the mesh, the decision, and what came of it. The steps of the
// phase work on it.
type Pass struct {
	Node     *node.Node
	View     *View
	Decision Decision

	memory *Memory
	// lookAgain: what the view tells was changed by a step, so that the pass looks
	// once more.
	lookAgain bool
	// unfinished: something of a peer was not there yet; the next pass is soon.
	unfinished bool

	answers   map[string]time.Duration
	listened  bool
	listenErr error
}

// newPass looks and decides.
func newPass(ctx context.Context, n *node.Node, m *Memory, limit time.Duration) (*Pass, error) {
	v, err := observe(ctx, n, m, limit)
	if err != nil {
		return nil, err
	}
	d := decide(v)
	return &Pass{Node: n, View: v, Decision: d, memory: m, unfinished: d.Unfinished}, nil
}

func (p *Pass) runner() engine.Runner[*Pass] {
	return engine.Runner[*Pass]{Subject: p, Progress: p.Node.Progress}
}

// canaryWait is how long a pass waits for the members' answers.
const canaryWait = 3 * time.Second

// Heard is which members answer the canary, by UUID, and how fast. They are asked
// once a pass, by the first who needs it: after the links are set up. Also a node
// without members has its canary open from then on, since others may ask it.
func (p *Pass) Heard(ctx context.Context) (map[string]time.Duration, error) {
	if !p.listened {
		p.listened = true
		p.answers, p.listenErr = p.listen(ctx)
	}
	return p.answers, p.listenErr
}

func (p *Pass) listen(ctx context.Context) (map[string]time.Duration, error) {
	if !p.View.Joinable {
		return nil, nil
	}
	canary, err := p.memory.openCanary(ctx, p.Node)
	if err != nil || len(p.Decision.Members) == 0 {
		return nil, err
	}
	wanted := make([]string, len(p.Decision.Members))
	for i, m := range p.Decision.Members {
		wanted[i] = m.UUID.String()
	}
	ctx, cancel := context.WithTimeout(ctx, canaryWait)
	defer cancel()
	return canary.Ping(ctx, wanted...)
}

// Result is how a pass ended.
type Result struct {
	Status Status
	Report engine.Report
	// Unfinished: something of a peer was not there yet, so the next pass is soon.
	Unfinished bool
}

// Converge makes one pass: it brings this node to what the mesh needs, goes on past
// what fails, and writes the status. Where a step changed what was looked at (it
// joined the WAN, say) the pass looks a second time. The error is what could not be
// done.
func Converge(ctx context.Context, n *node.Node, m *Memory) (Result, error) {
	before := ReadStatus(ctx, n)
	if readMarks(n).LeavingWAN {
		if err := endLeaving(ctx, n); err != nil {
			return Result{Status: before}, err
		}
	}
	result := Result{Status: before}
	for look := 1; ; look++ {
		p, err := newPass(ctx, n, m, stepTime)
		if err != nil {
			return result, err
		}
		report, err := p.run(ctx)
		result.Report = append(result.Report, report...)
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return result, ctx.Err()
		case p.lookAgain && look == 1 && ctx.Err() == nil:
			continue
		}
		result.Status, result.Unfinished = p.conclude(before, err), p.unfinished
		return result, errors.Join(err, n.WriteState(node.StatusFile, result.Status))
	}
}

// run applies the decision, and then listens.
func (p *Pass) run(ctx context.Context) (engine.Report, error) {
	report, err := p.runner().Run(ctx, Phase)
	if ctx.Err() != nil {
		return report, err
	}
	_, silence := p.Heard(ctx)
	return report, errors.Join(err, engine.Named("canary", silence), engine.Named("notices", p.View.SettingsErr))
}

// Plan tells what a pass would do now, and what a person should know. Nothing is
// changed.
func Plan(ctx context.Context, n *node.Node, m *Memory) (engine.Report, []string, error) {
	p, err := newPass(ctx, n, m, stepTime)
	if err != nil {
		return nil, nil, err
	}
	report, err := p.runner().Plan(ctx, Phase)
	return report, p.Decision.Notices, err
}
