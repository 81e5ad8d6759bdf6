package firstboot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"pgregory.net/rapid"
)

// thing is a resource that a test can break.
type thing struct {
	name      string
	done      bool
	applied   int
	failing   error
	pretender bool // says that it applied, and did not
}

func (r *thing) Diff(context.Context) ([]string, error) {
	if r.done {
		return nil, nil
	}
	return []string{r.name + " is not done"}, nil
}

func (r *thing) Apply(context.Context) error {
	r.applied++
	if r.failing != nil {
		return r.failing
	}
	r.done = !r.pretender
	return nil
}

func phaseOf(once bool, things ...*thing) Phase {
	p := Phase{Name: "phase", Once: once}
	for _, r := range things {
		p.Steps = append(p.Steps, Step{r.name, r.name, func(context.Context, *Node) (Resource, error) { return r, nil }})
	}
	return p
}

func nodeOf(t interface{ TempDir() string }) *Node {
	return &Node{
		Progress: func(Event) {},
		Journal:  newJournal(filepath.Join(t.TempDir(), "journal.json"), Instance{}, Identity{}),
	}
}

func TestAPhaseRunsInOrderAndOnlyOnce(t *testing.T) {
	n := nodeOf(t)
	var order []string
	n.Progress = func(e Event) { order = append(order, fmt.Sprintf("%d/%d %s", e.N, e.Of, e.Step)) }
	a, b := &thing{name: "a"}, &thing{name: "b", done: true}
	p := phaseOf(true, a, b)
	for range 2 {
		if _, err := n.Run(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff([]string{"1/2 a", "2/2 b"}, order); d != "" {
		t.Error(d)
	}
	if a.applied != 1 || b.applied != 0 {
		t.Errorf("a applied %d times, b %d times", a.applied, b.applied)
	}
	// What is stamped done is not looked at again, even if it changes.
	a.done = false
	if _, err := n.Run(t.Context(), p); err != nil || a.applied != 1 {
		t.Errorf("a applied %d times, %v", a.applied, err)
	}
}

func TestAPhaseStopsAtAnErrorAndResumesThere(t *testing.T) {
	n := nodeOf(t)
	a, b, c := &thing{name: "a"}, &thing{name: "b", failing: errors.New("no leader")}, &thing{name: "c"}
	p := phaseOf(true, a, b, c)
	if _, err := n.Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "b: no leader") {
		t.Fatalf("%v", err)
	}
	if c.applied != 0 {
		t.Error("it went on past an error")
	}
	b.failing = nil
	if _, err := n.Run(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if a.applied != 1 || b.applied != 2 || c.applied != 1 || !n.Journal.Finished(p) {
		t.Errorf("applied: %d, %d, %d", a.applied, b.applied, c.applied)
	}
}

func TestAStepThatDidNotTakeEffectIsAnError(t *testing.T) {
	n := nodeOf(t)
	if _, err := n.Run(t.Context(), phaseOf(true, &thing{name: "a", pretender: true})); err == nil || !strings.Contains(err.Error(), "still differs") {
		t.Errorf("%v", err)
	}
}

func TestAPlanIsWhatARunDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := nodeOf(t)
		var things []*thing
		for i := range rapid.IntRange(0, 6).Draw(rt, "steps") {
			things = append(things, &thing{name: fmt.Sprint(i), done: rapid.Bool().Draw(rt, "done")})
		}
		p := phaseOf(rapid.Bool().Draw(rt, "once"), things...)
		planned, err := n.Plan(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}
		ran, err := n.Run(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}
		if d := cmp.Diff(planned, ran); d != "" {
			rt.Error(d)
		}
		if again, _ := n.Plan(t.Context(), p); len(again) != 0 {
			rt.Errorf("after the run: %v", again)
		}
	})
}

// Cut off at any point, and begun again from what the disk has, a phase comes
// to the same end, with each thing done.
func TestAPhaseThatIsCutOffAnywhereComesToTheSameEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		file := filepath.Join(dir, "journal.json")
		things := []*thing{{name: "a"}, {name: "b"}, {name: "c"}}
		p := phaseOf(true, things...)
		j := newJournal(file, Instance{ID: "i"}, Identity{UUID: uuid.New()})
		if err := j.save(); err != nil {
			rt.Fatal(err)
		}

		type cut struct{}
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, 8), 1, 4).Draw(rt, "cuts") {
			func() {
				defer func() {
					if r := recover(); r != nil && r != (cut{}) {
						panic(r)
					}
				}()
				disk, err := readJournal(file)
				if err != nil {
					rt.Fatal(err)
				}
				points := 0
				point := func() {
					if points++; points > at {
						panic(cut{})
					}
				}
				broken := Phase{Name: p.Name, Once: true}
				for _, r := range things {
					broken.Steps = append(broken.Steps, Step{r.name, r.name, func(context.Context, *Node) (Resource, error) {
						return resource{
							diff: r.Diff,
							apply: func(ctx context.Context) error {
								point() // before the step took effect
								defer point()
								return r.Apply(ctx) // and after it did, but before the journal says so
							},
						}, nil
					}})
				}
				n := &Node{Progress: func(Event) {}, Journal: disk}
				n.Run(t.Context(), broken)
			}()
		}

		disk, err := readJournal(file)
		if err != nil {
			rt.Fatal(err)
		}
		n := &Node{Progress: func(Event) {}, Journal: disk}
		if _, err := n.Run(t.Context(), p); err != nil {
			rt.Fatal(err)
		}
		if !n.Journal.Finished(p) || slices.ContainsFunc(things, func(r *thing) bool { return !r.done || r.applied != 1 }) {
			rt.Errorf("the end differs: %+v", things)
		}
	})
}
