package firstboot

import (
	"context"
	"slices"
	"strings"
	"time"
)

// Event is one line of progress: a step that ended.
type Event struct {
	Phase   string
	Step    string
	N, Of   int
	Took    time.Duration
	Changes []string
	Err     error
}

// Progress receives events in order. It must not block for long.
type Progress func(Event)

// Run runs the steps of a phase in order and stops at the first error. What it
// did is in the journal before and after each step, so that it can be cut off
// at any instant and run again to the same end.
func (n *Node) Run(ctx context.Context, p Phase) ([]Change, error) {
	if p.Once && n.Journal.Finished(p) {
		return nil, nil
	}
	var changes []Change
	for i, s := range p.Steps {
		id := p.Name + "." + s.Name
		if p.Once && n.Journal.Done(id) {
			continue
		}
		if p.Once {
			if err := n.Journal.stamp(id, running); err != nil {
				return changes, err
			}
		}

		diff, err := n.runStep(ctx, p.Name, s, i+1, len(p.Steps))
		if len(diff) > 0 {
			changes = append(changes, Change{Step: id, Diff: diff})
		}
		if err != nil {
			return changes, err
		}

		if p.Once {
			if err := n.Journal.stamp(id, done); err != nil {
				return changes, err
			}
		}
	}
	if p.Once {
		failpoint(p.Name, beforeDone)
		return changes, n.Journal.stamp(p.Name, done)
	}
	return changes, nil
}

// runStep runs one step and tells of it.
func (n *Node) runStep(ctx context.Context, phase string, s Step, i, of int) ([]string, error) {
	start := time.Now()
	id := phase + "." + s.Name
	diff, err := s.run(ctx, n, id)
	if err == nil {
		failpoint(id, beforeDone)
	}
	n.Progress(Event{Phase: phase, Step: s.Name, N: i, Of: of, Took: time.Since(start), Changes: diff, Err: err})
	return diff, err
}

// Plan returns what Run would do, from the same steps, and changes nothing. A
// step that another one decides says so instead.
func (n *Node) Plan(ctx context.Context, p Phase) ([]Change, error) {
	if p.Once && n.Journal.Finished(p) {
		return nil, nil
	}
	if p.Name == ConvergePhase.Name {
		if _, err := n.begin(ctx); err != nil {
			return nil, err
		}
	}
	var changes []Change
	for _, s := range p.Steps {
		id := p.Name + "." + s.Name
		if p.Once && n.Journal.Done(id) {
			continue
		}
		first := follows[id]
		if slices.ContainsFunc(changes, func(c Change) bool { return c.Step == first }) {
			changes = append(changes, Change{Step: id, Diff: []string{"follows from " + first}})
			continue
		}
		r, err := s.Open(ctx, n)
		if err != nil {
			return changes, wrap(id, err)
		}
		diff, err := r.Diff(ctx)
		if err != nil {
			return changes, wrap(id, err)
		}
		if len(diff) > 0 {
			changes = append(changes, Change{Step: id, Diff: diff})
		}
	}
	return changes, nil
}

// PlanNext plans the phase that comes next: the others find what it leaves. On a
// server that `run` would make a node, that is become, with an identity that the
// run decides anew. Nil phase: a person has to say first; the string is why.
func (n *Node) PlanNext(ctx context.Context) (*Phase, []Change, string, error) {
	action, why, err := n.prepare(ctx, false)
	if err != nil {
		return nil, nil, why, err
	}
	switch action {
	case Hold:
		return nil, nil, why, nil
	case LeaveAlone:
		return nil, nil, why, n.DocumentErr
	}
	for _, p := range Phases() {
		if p.Once && n.Journal.Finished(p) {
			continue
		}
		if !p.Once {
			if why := n.Waits(ctx); why != "" {
				return nil, nil, why, nil
			}
		}
		changes, err := n.Plan(ctx, p)
		if action == Become {
			unknown := strings.NewReplacer(n.Identity().UUID.String(), "a new UUID", n.Identity().Name, "a new name")
			for _, c := range changes {
				for i := range c.Diff {
					c.Diff[i] = unknown.Replace(c.Diff[i])
				}
			}
		}
		return &p, changes, why, err
	}
	return nil, nil, why, nil
}
