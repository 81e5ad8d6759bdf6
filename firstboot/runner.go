package firstboot

import (
	"context"
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

// Plan returns what Run would do, from the same steps, and changes nothing.
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
		r, err := s.Open(ctx, n)
		if err != nil {
			return changes, err
		}
		diff, err := r.Diff(ctx)
		if err != nil {
			return changes, err
		}
		if len(diff) > 0 {
			changes = append(changes, Change{Step: id, Diff: diff})
		}
	}
	return changes, nil
}
