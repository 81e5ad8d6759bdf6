package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Skip is why a step does not concern its subject; "" means that it does. A step
// that is skipped is told as such, and neither as wanted, nor changed, nor failed.
type Skip string

// Step is a named place in a phase. All that is known about it stands here.
type Step[S any] struct {
	// Name is the step's own in its phase: lower case and dashes. It is written to
	// journals, so it is kept for good.
	Name string
	// Text says what is so when the step is done, for --help and the docs.
	Text string
	// When says why the step does not concern the subject. Nil: it always does. It
	// asks no server and changes nothing.
	When func(S) Skip
	// After is the step of the same phase that decides what this one finds, so
	// that a plan cannot tell it as long as that one differs. "": none.
	After string
	// Deadline is how long the step may take where it must have more than its
	// phase gives to each. 0: what the phase gives.
	Deadline time.Duration
	// KeptForLife: what it sets is kept by the subject for as long as it lives, and
	// may be looked at ever after.
	KeptForLife bool
	// Open makes the step's resource, and opens the connections that it needs;
	// nothing before it does.
	Open func(ctx context.Context, subject S) (Resource, error)
}

// skip is When, where there is one.
func (s Step[S]) skip(subject S) Skip {
	if s.When == nil {
		return ""
	}
	return s.When(subject)
}

// First is the first reason of several conditions for which a step is skipped.
func First[S any](conditions ...func(S) Skip) func(S) Skip {
	return func(subject S) (why Skip) {
		for _, condition := range conditions {
			why = cmp.Or(why, condition(subject))
		}
		return why
	}
}

// Phase is an ordered list of steps.
type Phase[S any] struct {
	Name string
	Text string
	// Once: its steps are stamped in the journal, and what is stamped done is not
	// run again.
	Once bool
	// GoOn: each step stands for itself, so an error does not keep those after it
	// from being run. Otherwise the first error ends the phase.
	GoOn bool
	// Deadline is how long each of its steps may take. 0: as long as the caller
	// has.
	Deadline time.Duration
	Steps    []Step[S]
}

// ID is the name of a step beyond its phase, as journals have it: PHASE.STEP.
func (p Phase[S]) ID(step string) string { return p.Name + "." + step }

// Step finds a step by its name.
func (p Phase[S]) Step(name string) (Step[S], bool) {
	i := slices.IndexFunc(p.Steps, func(s Step[S]) bool { return s.Name == name })
	if i < 0 {
		return Step[S]{}, false
	}
	return p.Steps[i], true
}

// Check refuses a phase whose parts do not fit together: a step without a name, a
// text or a resource, two with one name, and an After that names no step before it.
func (p Phase[S]) Check() error {
	var errs []error
	seen := map[string]bool{}
	for _, s := range p.Steps {
		id := p.ID(s.Name)
		switch {
		case s.Name == "" || s.Text == "" || s.Open == nil:
			errs = append(errs, fmt.Errorf("step %q: name, text and Open are all needed", id))
		case seen[s.Name]:
			errs = append(errs, fmt.Errorf("step %q is there twice", id))
		case s.After != "" && !seen[s.After]:
			errs = append(errs, fmt.Errorf("step %q comes after %q, which is no step before it", id, s.After))
		case s.Deadline != 0 && s.Deadline < p.Deadline:
			errs = append(errs, fmt.Errorf("step %q has a shorter deadline than its phase", id))
		}
		seen[s.Name] = true
	}
	return errors.Join(errs...)
}

// Summary is a phase as it is told to people: by --help, and in the docs.
type Summary struct {
	Name  string
	Text  string
	Once  bool
	Steps []StepSummary
}

// StepSummary is one step of it.
type StepSummary struct{ Name, Text string }

// Summary tells the phase's steps, in order.
func (p Phase[S]) Summary() Summary {
	out := Summary{Name: p.Name, Text: p.Text, Once: p.Once}
	for _, s := range p.Steps {
		out.Steps = append(out.Steps, StepSummary{s.Name, s.Text})
	}
	return out
}
