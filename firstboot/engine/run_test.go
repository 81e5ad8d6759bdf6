package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// house is the subject: what the steps of these tests work on.
type house struct{ empty bool }

type (
	phase = engine.Phase[*house]
	step  = engine.Step[*house]
)

// thing is a resource that a test can break.
type thing struct {
	name       string
	done       bool
	applied    int
	failing    error
	unreadable error
	pretender  bool     // says that it applied, and did not
	undoes     []*thing // what its Apply leaves to be done again
}

func (r *thing) Diff(context.Context) ([]string, error) {
	if r.done {
		return nil, r.unreadable
	}
	return []string{r.name + " is not done"}, r.unreadable
}

func (r *thing) Apply(context.Context) error {
	r.applied++
	if r.failing != nil {
		return r.failing
	}
	r.done = !r.pretender
	for _, other := range r.undoes {
		other.done = false
	}
	return nil
}

// stepOf is the step of one thing.
func stepOf(r *thing) step {
	return step{Name: r.name, Text: r.name, Open: func(context.Context, *house) (engine.Resource, error) { return r, nil }}
}

func phaseOf(once bool, things ...*thing) phase {
	p := phase{Name: "phase", Once: once}
	for _, r := range things {
		p.Steps = append(p.Steps, stepOf(r))
	}
	return p
}

// journal is one on the disk.
type journal string

func newJournal(t *testing.T) journal { return journal(filepath.Join(t.TempDir(), "journal")) }

func (j journal) read() map[string]engine.State {
	stamps := map[string]engine.State{}
	if raw, err := os.ReadFile(string(j)); err == nil {
		if err := json.Unmarshal(raw, &stamps); err != nil {
			panic(err)
		}
	}
	return stamps
}

func (j journal) Done(id string) bool { return j.read()[id] == engine.Done }

func (j journal) Begun(id string) bool { return j.read()[id] != "" }

func (j journal) Stamp(id string, s engine.State) error {
	stamps := j.read()
	stamps[id] = s
	raw, err := json.Marshal(stamps)
	if err != nil {
		return err
	}
	return os.WriteFile(string(j), raw, 0o600)
}

func runnerOf(t *testing.T) engine.Runner[*house] {
	return engine.Runner[*house]{Subject: &house{}, Journal: newJournal(t)}
}

func TestAPhaseRunsInOrderAndOnlyOnce(t *testing.T) {
	r := runnerOf(t)
	var order []string
	r.Progress = func(e engine.Event) { order = append(order, fmt.Sprintf("%d/%d %s", e.N, e.Of, e.Step)) }
	a, b := &thing{name: "a"}, &thing{name: "b", done: true}
	p := phaseOf(true, a, b)
	for range 2 {
		if _, err := r.Run(t.Context(), p); err != nil {
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
	if _, err := r.Run(t.Context(), p); err != nil || a.applied != 1 {
		t.Errorf("a applied %d times, %v", a.applied, err)
	}
}

func TestAPhaseStopsAtAnErrorAndResumesThere(t *testing.T) {
	r := runnerOf(t)
	a, b, c := &thing{name: "a"}, &thing{name: "b", failing: errors.New("no leader")}, &thing{name: "c"}
	p := phaseOf(true, a, b, c)
	if _, err := r.Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "b: no leader") {
		t.Fatalf("%v", err)
	}
	if c.applied != 0 {
		t.Error("it went on past an error")
	}
	b.failing = nil
	if _, err := r.Run(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if a.applied != 1 || b.applied != 2 || c.applied != 1 || !r.Journal.Done(p.Name) {
		t.Errorf("applied: %d, %d, %d", a.applied, b.applied, c.applied)
	}
}

func TestAStepThatDidNotTakeEffectIsAnError(t *testing.T) {
	r := runnerOf(t)
	if _, err := r.Run(t.Context(), phaseOf(true, &thing{name: "a", pretender: true})); err == nil || !strings.Contains(err.Error(), "still differs") {
		t.Errorf("%v", err)
	}
}

// A plan may leave open what a step will find, but only where it says that another
// one, which will change something, decides it.
func TestAPlanIsWhatARunDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := runnerOf(t)
		var things []*thing
		p := phase{Name: "phase", Once: rapid.Bool().Draw(rt, "once")}
		for i := range rapid.IntRange(0, 6).Draw(rt, "steps") {
			it := &thing{name: fmt.Sprint(i), done: rapid.Bool().Draw(rt, "done")}
			s := stepOf(it)
			if rapid.Bool().Draw(rt, "skipped") {
				s.When = func(*house) engine.Skip { return "not here" }
			}
			if i > 0 && rapid.Bool().Draw(rt, "follows") {
				before := rapid.IntRange(0, i-1).Draw(rt, "after")
				s.After = things[before].name
				if rapid.Bool().Draw(rt, "undone") {
					things[before].undoes = append(things[before].undoes, it)
				}
			}
			things, p.Steps = append(things, it), append(p.Steps, s)
			if p.Once && rapid.Bool().Draw(rt, "stamped") {
				if err := r.Journal.Stamp(p.ID(s.Name), engine.Done); err != nil {
					rt.Fatal(err)
				}
			}
		}
		planned, err := r.Plan(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}
		if i := slices.IndexFunc(things, func(it *thing) bool { return it.applied > 0 }); i >= 0 {
			rt.Errorf("to plan it applied %s", things[i].name)
		}
		ran, err := r.Run(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}

		changed := map[string]bool{}
		for i, e := range planned {
			if e.Follows != "" {
				s, _ := p.Step(e.Step)
				if e.Follows != p.ID(s.After) || !changed[e.Follows] {
					rt.Errorf("%s is left open for %q, which changes nothing", e.ID(), e.Follows)
				}
				if len(e.Changes) > 0 || e.Skipped != "" {
					rt.Errorf("%s is open, and told: %+v", e.ID(), e)
				}
				if i < len(ran) {
					planned[i].Changes, planned[i].Follows = ran[i].Changes, ""
				}
			}
			changed[e.ID()] = len(e.Changes) > 0 || e.Follows != ""
		}
		if d := cmp.Diff(planned, ran, cmpopts.IgnoreFields(engine.Event{}, "Took")); d != "" {
			rt.Error(d)
		}
		again, err := r.Plan(t.Context(), p)
		if err != nil {
			rt.Fatal(err)
		}
		for _, e := range ran {
			s, _ := p.Step(e.Step)
			if skipped := s.When != nil; skipped != (e.Skipped != "") || skipped && things[e.N-1].applied > 0 {
				rt.Errorf("it is to be skipped: %t; %+v", skipped, e)
			}
		}
		for _, e := range again {
			if p.Once || len(e.Changes) > 0 || e.Follows != "" {
				rt.Errorf("after the run: %+v", e)
			}
		}
	})
}

// Cut off at any point, and begun again from what the disk has, a phase comes
// to the same end, with each thing done.
func TestAPhaseThatIsCutOffAnywhereComesToTheSameEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		disk := newJournal(t)
		things := []*thing{{name: "a"}, {name: "b"}, {name: "c"}}
		p := phaseOf(true, things...)

		type cut struct{}
		for _, at := range rapid.SliceOfN(rapid.IntRange(0, 8), 1, 4).Draw(rt, "cuts") {
			func() {
				defer func() {
					if r := recover(); r != nil && r != (cut{}) {
						panic(r)
					}
				}()
				points := 0
				point := func() {
					if points++; points > at {
						panic(cut{})
					}
				}
				broken := phase{Name: p.Name, Once: true}
				for _, it := range things {
					s := stepOf(it)
					s.Open = func(context.Context, *house) (engine.Resource, error) {
						return engine.New(it.Diff, func(ctx context.Context) error {
							point() // before the step took effect
							defer point()
							return it.Apply(ctx) // and after it did, but before the journal says so
						}), nil
					}
					broken.Steps = append(broken.Steps, s)
				}
				engine.Runner[*house]{Journal: disk}.Run(t.Context(), broken)
			}()
		}

		if _, err := (engine.Runner[*house]{Journal: disk}).Run(t.Context(), p); err != nil {
			rt.Fatal(err)
		}
		if !disk.Done(p.Name) || slices.ContainsFunc(things, func(it *thing) bool { return !it.done || it.applied != 1 }) {
			rt.Errorf("the end differs: %+v", things)
		}
	})
}

func TestAPhaseThatGoesOnRunsEveryStepAndTellsEveryError(t *testing.T) {
	a, b, c := &thing{name: "a", failing: errors.New("no leader")}, &thing{name: "b"}, &thing{name: "c", pretender: true}
	p := phaseOf(false, a, b, c)
	p.GoOn = true
	report, err := engine.Runner[*house]{}.Run(t.Context(), p)
	if err == nil || !strings.Contains(err.Error(), "a: no leader") || !strings.Contains(err.Error(), "c: was applied but still differs") {
		t.Errorf("%v", err)
	}
	if len(report) != 3 || !b.done || report[1].Err != nil || report[0].Err == nil || report[2].Err == nil {
		t.Errorf("%+v", report)
	}

	// But not past the end of the time that it was given.
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	report, err = engine.Runner[*house]{}.Run(ctx, p)
	if len(report) != 1 || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "a: no leader") || !strings.Contains(err.Error(), "there was no time for the steps after a") {
		t.Errorf("%+v, %v", report, err)
	}
}

// Whoever ends a run wants to hear that, and not what failed for it.
func TestARunThatIsCancelledSaysSoAndResumesThere(t *testing.T) {
	for _, goOn := range []bool{true, false} {
		r := runnerOf(t)
		ctx, cancel := context.WithCancel(t.Context())
		r.Progress = func(engine.Event) { cancel() }
		a, b := &thing{name: "a"}, &thing{name: "b"}
		p := phaseOf(true, a, b)
		p.GoOn = goOn
		if report, err := r.Run(ctx, p); err != context.Canceled || len(report) != 1 || b.applied > 0 {
			t.Errorf("it goes on past errors: %t: %+v, %v", goOn, report, err)
		}
		r.Progress = nil
		if _, err := r.Run(t.Context(), p); err != nil || a.applied != 1 || !b.done || !r.Journal.Done(p.Name) {
			t.Errorf("it goes on past errors: %t: then a is applied %d times, b is done: %t, %v", goOn, a.applied, b.done, err)
		}
	}
}

// A step that does not concern the subject is told, and counts neither as changed
// nor as failed. Nothing of it is opened.
func TestAStepThatIsSkippedSaysWhy(t *testing.T) {
	inhabited := func(h *house) engine.Skip {
		if h.empty {
			return "nobody lives here"
		}
		return ""
	}
	a, b := &thing{name: "a"}, &thing{name: "b"}
	p := phaseOf(false, a, b)
	p.Steps[0].When = engine.First(func(*house) engine.Skip { return "" }, inhabited, func(h *house) engine.Skip {
		if h.empty {
			return "a second reason"
		}
		return ""
	})
	opened := 0
	p.Steps[0].Open = func(context.Context, *house) (engine.Resource, error) {
		opened++
		return nil, errors.New("it was opened")
	}
	want := engine.Report{
		{Phase: "phase", Step: "a", N: 1, Of: 2, Skipped: "nobody lives here"},
		{Phase: "phase", Step: "b", N: 2, Of: 2, Changes: []string{"b is not done"}},
	}
	var told engine.Report
	r := engine.Runner[*house]{Subject: &house{empty: true}, Progress: func(e engine.Event) { told = append(told, e) }}
	planned, err := r.Plan(t.Context(), p)
	if err != nil {
		t.Error(err)
	}
	ran, err := r.Run(t.Context(), p)
	if err != nil {
		t.Error(err)
	}
	for name, got := range map[string]engine.Report{"plan": planned, "run": ran, "progress": told} {
		if d := cmp.Diff(want, got, cmpopts.IgnoreFields(engine.Event{}, "Took")); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if changed := got.Changed(); len(changed) != 1 || changed[0].ID() != "phase.b" || got.Err() != nil {
			t.Errorf("%s: changed %+v, failed %v", name, changed, got.Err())
		}
	}
	if diff, skipped, err := p.Steps[0].Look(t.Context(), &house{empty: true}); diff != nil || skipped != "nobody lives here" || err != nil {
		t.Errorf("who looks at it: %q, %q, %v", diff, skipped, err)
	}
	if opened > 0 {
		t.Error("what is skipped was opened")
	}
	if _, _, err := p.Steps[0].Look(t.Context(), &house{}); err == nil {
		t.Error("what is not skipped is not looked at")
	}
}

func TestAPlanEndsAtWhatCannotBeRead(t *testing.T) {
	a, b, c := &thing{name: "a"}, &thing{name: "b", unreadable: errors.New("no leader")}, &thing{name: "c"}
	report, err := engine.Runner[*house]{}.Plan(t.Context(), phaseOf(false, a, b, c))
	if err == nil || err.Error() != "phase.b: no leader" || len(report) != 2 || report[1].Err == nil {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestAPhaseWhosePartsDoNotFitTogetherIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*phase)
		says   string
	}{
		"as it should be":                    {func(*phase) {}, ""},
		"a longer deadline than the phase's": {func(p *phase) { p.Steps[1].Deadline = 2 * time.Minute }, ""},
		"an After that is misspelt":          {func(p *phase) { p.Steps[2].After = "A" }, `step "phase.c" comes after "A"`},
		"an After that comes later":          {func(p *phase) { p.Steps[0].After = "b" }, `step "phase.a" comes after "b"`},
		"an After that is the step itself":   {func(p *phase) { p.Steps[1].After = "b" }, `step "phase.b" comes after "b"`},
		"a step twice":                       {func(p *phase) { p.Steps[2].Name = "a" }, `step "phase.a" is there twice`},
		"without a name":                     {func(p *phase) { p.Steps[1].Name = "" }, `step "phase."`},
		"without a text":                     {func(p *phase) { p.Steps[1].Text = "" }, `step "phase.b"`},
		"without Open":                       {func(p *phase) { p.Steps[1].Open = nil }, `step "phase.b"`},
		"a shorter deadline":                 {func(p *phase) { p.Steps[1].Deadline = time.Second }, `step "phase.b" has a shorter deadline`},
	} {
		t.Run(name, func(t *testing.T) {
			p := phaseOf(true, &thing{name: "a"}, &thing{name: "b"}, &thing{name: "c"})
			p.Deadline, p.Steps[2].After = time.Minute, "a"
			c.change(&p)
			if err := p.Check(); (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error with %q", err, c.says)
			}
		})
	}
}

func TestTheDeadlineOfAStepIsItsOwnOrItsPhases(t *testing.T) {
	for name, c := range map[string]struct{ phase, step, want time.Duration }{
		"of the step":  {time.Minute, time.Hour, time.Hour},
		"of the phase": {time.Minute, 0, time.Minute},
		"of neither":   {0, 0, 0},
		"of it alone":  {0, time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			p := phaseOf(false, &thing{name: "a"})
			p.Deadline, p.Steps[0].Deadline = c.phase, c.step
			var end time.Time
			var ends bool
			open := p.Steps[0].Open
			p.Steps[0].Open = func(ctx context.Context, h *house) (engine.Resource, error) {
				end, ends = ctx.Deadline()
				return open(ctx, h)
			}
			start := time.Now()
			if _, err := (engine.Runner[*house]{}).Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			inherited, has := t.Context().Deadline()
			switch {
			case c.want == 0 && (ends != has || !end.Equal(inherited)):
				t.Errorf("it ends at %s, the caller's time at %s", end, inherited)
			case c.want > 0 && (end.Before(start.Add(c.want)) || end.After(time.Now().Add(c.want))):
				t.Errorf("it has %s, want %s", end.Sub(start), c.want)
			}
		})
	}
}

// Several resources are one: neither what differs nor what cannot be read of one
// hides the others.
func TestSeveralResourcesHideNothingOfEachOther(t *testing.T) {
	lost, broken := errors.New("cannot be read"), errors.New("cannot be done")
	a, b, c, d := &thing{name: "a", done: true, unreadable: lost}, &thing{name: "b"}, &thing{name: "c", failing: broken}, &thing{name: "d"}
	e := &thing{name: "e", done: true}
	all := engine.All{a, b, c, d, e}
	diff, err := all.Diff(t.Context())
	if d := cmp.Diff([]string{"b is not done", "c is not done", "d is not done"}, diff); d != "" || !errors.Is(err, lost) {
		t.Errorf("%s, %v", d, err)
	}
	p := phase{Name: "phase", Steps: []step{{Name: "all", Open: func(context.Context, *house) (engine.Resource, error) { return all, nil }}}}
	report, err := engine.Runner[*house]{}.Run(t.Context(), p)
	if !errors.Is(err, lost) || !errors.Is(err, broken) || len(report) != 1 || len(report[0].Changes) != 3 {
		t.Errorf("%+v, %v", report, err)
	}
	if !b.done || !d.done || a.applied+e.applied > 0 {
		t.Errorf("b is done: %t, d is done: %t; applied, though they do not differ: a %d, e %d times", b.done, d.done, a.applied, e.applied)
	}
}

func TestAStepThatWasDoneCanBeMadeToRunAgain(t *testing.T) {
	j := newJournal(t)
	for id, s := range map[string]engine.State{"done": engine.Done, "running": engine.Running} {
		if err := j.Stamp(id, s); err != nil {
			t.Fatal(err)
		}
	}
	for id, begun := range map[string]bool{"done": true, "running": true, "never": false} {
		if err := engine.Redo(j, id); err != nil || j.Done(id) || j.Begun(id) != begun {
			t.Errorf("%s: done %t, begun %t, %v", id, j.Done(id), j.Begun(id), err)
		}
	}
}

// unwritable is a journal on a full disk.
type unwritable struct{ journal }

func (unwritable) Stamp(string, engine.State) error { return errors.New("no space left") }

// A power cut would find a step half done, and no sign of it.
func TestNothingIsDoneThatTheJournalDoesNotKnowOf(t *testing.T) {
	a := &thing{name: "a"}
	_, err := engine.Runner[*house]{Journal: unwritable{newJournal(t)}}.Run(t.Context(), phaseOf(true, a))
	if err == nil || a.applied > 0 {
		t.Errorf("applied %d times, %v", a.applied, err)
	}
}

// What cannot be read of one thing keeps no other from being put right: a firewall of
// which one family cannot be read is set in the other.
func TestEnsureAppliesWhatItCouldRead(t *testing.T) {
	blind := errors.New("nothing can be read")
	applied := false
	other := engine.New(func(context.Context) ([]string, error) {
		if applied {
			return nil, nil
		}
		return []string{"differs"}, nil
	}, func(context.Context) error { applied = true; return nil })
	if err := engine.Ensure(t.Context(), engine.All{engine.Broken(blind), other}); !errors.Is(err, blind) || !applied {
		t.Errorf("applied: %t, %v", applied, err)
	}
}
