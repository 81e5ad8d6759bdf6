// Package engine runs phases: ordered lists of steps, each of them one thing that
// is read, compared, applied and read again. It knows no XiVO: it is generic over
// what a step works on, here called the subject. Every package of firstboot may
// import it; it imports none.
package engine

import (
	"context"
	"errors"
	"fmt"
)

// Resource is one thing that is read, compared, applied and read again.
type Resource interface {
	// Diff says what differs from what should be, one line each, for a person
	// to read, without secrets. Nothing is changed. Nil means: as wanted.
	Diff(ctx context.Context) ([]string, error)
	// Apply makes it so. It may be called again at any time.
	Apply(ctx context.Context) error
}

// New makes a Resource of two functions.
func New(diff func(ctx context.Context) ([]string, error), apply func(ctx context.Context) error) Resource {
	return functions{diff, apply}
}

type functions struct {
	diff  func(ctx context.Context) ([]string, error)
	apply func(ctx context.Context) error
}

func (f functions) Diff(ctx context.Context) ([]string, error) { return f.diff(ctx) }
func (f functions) Apply(ctx context.Context) error            { return f.apply(ctx) }

// Broken is a resource that cannot be read, and why.
func Broken(why error) Resource {
	return New(func(context.Context) ([]string, error) { return nil, why }, func(context.Context) error { return why })
}

// Replaced is every one of some things being another than when it was looked at first.
// Look tells them by name, each with what tells it from another of its name; says tells
// how many are the same.
func Replaced[T comparable](look func(context.Context) (map[string]T, error), says func(same int) string, apply func(context.Context) error) Resource {
	var was map[string]T
	return New(func(ctx context.Context) ([]string, error) {
		now, err := look(ctx)
		if err != nil {
			return nil, err
		}
		if was == nil {
			was = now
		}
		same := 0
		for name, one := range now {
			if was[name] == one {
				same++
			}
		}
		if same == 0 {
			return nil, nil
		}
		return []string{says(same)}, nil
	}, apply)
}

// All is several resources as one, in order. What could not be read of one hides
// neither the differences of the others nor keeps them from being applied.
type All []Resource

// Diff joins what differs, and what could not be read.
func (rs All) Diff(ctx context.Context) ([]string, error) {
	var diff []string
	var errs []error
	for _, r := range rs {
		d, err := r.Diff(ctx)
		diff = append(diff, d...)
		errs = append(errs, err)
	}
	return diff, errors.Join(errs...)
}

// Apply applies those that differ.
func (rs All) Apply(ctx context.Context) error {
	var errs []error
	for _, r := range rs {
		errs = append(errs, Ensure(ctx, r))
	}
	return errors.Join(errs...)
}

// Ensure applies a resource where it differs. It does not read it again: a step
// does.
func Ensure(ctx context.Context, r Resource) error {
	diff, err := r.Diff(ctx)
	if len(diff) == 0 {
		return err
	}
	// What differs does not wait for what could not be read.
	return errors.Join(err, r.Apply(ctx))
}

// Named puts the name of what failed before an error; nil stays nil.
func Named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, err)
}
