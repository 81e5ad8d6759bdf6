package engine

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Event is how one step ended, or in a plan would end.
type Event struct {
	Phase string
	Step  string
	N, Of int // its place in the phase, from 1
	Took  time.Duration
	// Changes are the differences that it found and removed, or in a plan would.
	Changes []string
	// Skipped is why it does not concern the subject.
	Skipped Skip
	// Follows is the step, in a plan, that decides what this one will find.
	Follows string
	Err     error
}

// ID is PHASE.STEP.
func (e Event) ID() string { return e.Phase + "." + e.Step }

// Progress receives events in order. It must not block for long.
type Progress func(Event)

// Report is what a phase did, or a plan of it would do: an event for each step
// that was looked at, in order. What a journal says to be done is not among them.
type Report []Event

// Changed are the events that changed something.
func (r Report) Changed() Report {
	var out Report
	for _, e := range r {
		if len(e.Changes) > 0 {
			out = append(out, e)
		}
	}
	return out
}

// Err joins the errors of all steps.
func (r Report) Err() error {
	var errs []error
	for _, e := range r {
		errs = append(errs, e.Err)
	}
	return errors.Join(errs...)
}

// Runner runs phases on one subject.
type Runner[S any] struct {
	Subject S
	// Journal remembers the steps of phases that run once. It may be nil for a
	// plan and for phases that do not.
	Journal Journal
	// Progress may be nil.
	Progress Progress
}

// Run runs the steps of a phase in order. With a journal, it can be cut off at
// any instant and run again to the same end. The error is that of the steps. A ctx
// that was cancelled ends the phase, after its last step too, with its error and no
// stamp.
func (r Runner[S]) Run(ctx context.Context, p Phase[S]) (Report, error) {
	if p.Once && r.Journal.Done(p.Name) {
		return nil, nil
	}
	var report Report
	for i, s := range p.Steps {
		id := p.ID(s.Name)
		if p.Once {
			if r.Journal.Done(id) {
				continue
			}
			if err := r.Journal.Stamp(id, Running); err != nil {
				return report, err
			}
		}

		e := r.Step(ctx, p, i)
		report = append(report, e)
		switch {
		case errors.Is(ctx.Err(), context.Canceled):
			return report, ctx.Err()
		case ctx.Err() != nil && p.GoOn && i+1 < len(p.Steps):
			return report, errors.Join(report.Err(), fmt.Errorf("there was no time for the steps after %s: %w", s.Name, ctx.Err()))
		case e.Err != nil && !p.GoOn:
			return report, e.Err
		}

		if p.Once {
			if err := r.Journal.Stamp(id, Done); err != nil {
				return report, err
			}
		}
	}
	if p.Once {
		failpoint(p.Name, beforeDone)
		return report, r.Journal.Stamp(p.Name, Done)
	}
	return report, report.Err()
}

// Step runs the i-th step of a phase, whatever a journal says, and tells of it.
func (r Runner[S]) Step(ctx context.Context, p Phase[S], i int) Event {
	s := p.Steps[i]
	e := Event{Phase: p.Name, Step: s.Name, N: i + 1, Of: len(p.Steps)}
	start := time.Now()
	if e.Skipped = s.skip(r.Subject); e.Skipped == "" {
		if limit := max(p.Deadline, s.Deadline); limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		e.Changes, e.Err = s.ensure(ctx, r.Subject, p.ID(s.Name))
	}
	e.Took = time.Since(start)
	if e.Err == nil {
		failpoint(p.ID(s.Name), beforeDone)
	}
	if r.Progress != nil {
		r.Progress(e)
	}
	return e
}

// ensure brings the step's resource to what it should be and reads it again.
func (s Step[S]) ensure(ctx context.Context, subject S, id string) ([]string, error) {
	resource, err := s.Open(ctx, subject)
	if err != nil {
		return nil, Named(s.Name, err)
	}
	diff, err := resource.Diff(ctx)
	if len(diff) == 0 {
		return nil, Named(s.Name, err)
	}
	failpoint(id, beforeApply)
	// What is known to differ does not wait for what could not be read.
	if err := errors.Join(err, resource.Apply(ctx)); err != nil {
		return diff, Named(s.Name, err)
	}
	failpoint(id, afterApply)
	left, err := resource.Diff(ctx)
	if err != nil {
		return diff, fmt.Errorf("%s: read again: %w", s.Name, err)
	}
	if len(left) > 0 {
		return diff, fmt.Errorf("%s: was applied but still differs: %s", s.Name, left[0])
	}
	return diff, nil
}

// Plan tells what Run would do, from the same steps, and changes nothing. The
// first step that cannot be read ends it with that error, but in a phase that goes
// on past errors.
func (r Runner[S]) Plan(ctx context.Context, p Phase[S]) (Report, error) {
	if p.Once && r.Journal != nil && r.Journal.Done(p.Name) {
		return nil, nil
	}
	var report Report
	differs := map[string]bool{}
	for i, s := range p.Steps {
		if p.Once && r.Journal != nil && r.Journal.Done(p.ID(s.Name)) {
			continue
		}
		e := Event{Phase: p.Name, Step: s.Name, N: i + 1, Of: len(p.Steps)}
		if e.Skipped = s.skip(r.Subject); e.Skipped == "" {
			if s.After != "" && differs[s.After] {
				e.Follows = p.ID(s.After)
			} else if e.Changes, e.Err = s.Diff(ctx, r.Subject); e.Err != nil {
				e.Err = Named(p.ID(s.Name), e.Err)
				if !p.GoOn {
					return append(report, e), e.Err
				}
			}
		}
		differs[s.Name] = len(e.Changes) > 0 || e.Follows != ""
		report = append(report, e)
	}
	return report, report.Err()
}

// Diff opens the step's resource and says what differs.
func (s Step[S]) Diff(ctx context.Context, subject S) ([]string, error) {
	resource, err := s.Open(ctx, subject)
	if err != nil {
		return nil, err
	}
	return resource.Diff(ctx)
}

// Look is Diff for one that only looks at a step: skipped says why it does not
// concern the subject.
func (s Step[S]) Look(ctx context.Context, subject S) (diff []string, skipped Skip, err error) {
	if skipped = s.skip(subject); skipped != "" {
		return nil, skipped, nil
	}
	diff, err = s.Diff(ctx, subject)
	return diff, "", err
}

// boundary is a place of a step between two things that it does: where a power
// cut leaves it begun and not done.
type boundary string

const (
	beforeApply boundary = "before-apply"
	afterApply  boundary = "after-apply"
	beforeDone  boundary = "before-done" // all is as wanted, and the journal does not say so yet
)
