package firstboot

import (
	"context"
	"errors"
	"fmt"
)

// Resource is one thing of this machine that is read, compared, applied and
// read again. All that firstboot sets up is one of these.
type Resource interface {
	// Diff says what differs from what should be, one line each, for a person
	// to read, without secrets. Nothing is changed. Nil means: as wanted.
	Diff(ctx context.Context) ([]string, error)
	// Apply makes it so. It may be called again at any time.
	Apply(ctx context.Context) error
}

// Step is a named place in a phase. Open makes its resource for a node, and
// opens the connections that the resource needs; nothing before it does.
type Step struct {
	Name string
	Text string
	Open func(ctx context.Context, n *Node) (Resource, error)
}

// Phase is an ordered list of steps. The steps of a phase that runs Once are
// stamped in the journal, and one that is stamped done is not run again.
type Phase struct {
	Name  string
	Text  string
	Once  bool
	Steps []Step
}

// all is several resources as one, in order: those that differ are applied.
type all []Resource

func (rs all) Diff(ctx context.Context) ([]string, error) {
	var diff []string
	var errs []error
	for _, r := range rs {
		d, err := r.Diff(ctx)
		diff = append(diff, d...)
		errs = append(errs, err)
	}
	return diff, errors.Join(errs...)
}

func (rs all) Apply(ctx context.Context) error {
	var errs []error
	for _, r := range rs {
		errs = append(errs, ensure(ctx, r))
	}
	return errors.Join(errs...)
}

// ensure applies a resource if it differs.
func ensure(ctx context.Context, r Resource) error {
	diff, err := r.Diff(ctx)
	if err != nil || len(diff) == 0 {
		return err
	}
	return r.Apply(ctx)
}

// nothing is the resource of a step that does not concern this node.
var nothing Resource = all(nil)

// resource makes a Resource of two functions, for what belongs to firstboot
// itself: the order of things, and its own state.
type resource struct {
	diff  func(ctx context.Context) ([]string, error)
	apply func(ctx context.Context) error
}

func (r resource) Diff(ctx context.Context) ([]string, error) { return r.diff(ctx) }
func (r resource) Apply(ctx context.Context) error            { return r.apply(ctx) }

// wrap names what failed; nil stays nil.
func wrap(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Change is what one step did, or in a plan would do.
type Change struct {
	Step string   `json:"step"`
	Diff []string `json:"diff"`
}

// boundary is a place of a step between two things that it does: where a power
// cut leaves it begun and not done.
type boundary string

const (
	beforeApply boundary = "before-apply"
	afterApply  boundary = "after-apply"
	beforeDone  boundary = "before-done" // all is as wanted, and the journal does not say so yet
)

// run brings one step's resource to what it should be and reads it again. The
// step's id is its phase and its name.
func (s Step) run(ctx context.Context, n *Node, id string) ([]string, error) {
	r, err := s.Open(ctx, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	diff, err := r.Diff(ctx)
	if len(diff) == 0 {
		return nil, wrap(s.Name, err)
	}
	failpoint(id, beforeApply)
	// What is known to differ does not wait for what could not be read.
	if err := errors.Join(err, r.Apply(ctx)); err != nil {
		return diff, wrap(s.Name, err)
	}
	failpoint(id, afterApply)
	left, err := r.Diff(ctx)
	if err != nil {
		return diff, fmt.Errorf("%s: read again: %w", s.Name, err)
	}
	if len(left) > 0 {
		return diff, fmt.Errorf("%s: was applied but still differs: %s", s.Name, left[0])
	}
	return diff, nil
}
