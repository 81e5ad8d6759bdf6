package converge_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

func TestTheStepsOfThePhaseFitTogether(t *testing.T) {
	if err := converge.Phase.Check(); err != nil {
		t.Error(err)
	}
}

func TestASlipInThePhaseIsFound(t *testing.T) {
	type step = engine.Step[*converge.Pass]
	for _, c := range []struct {
		name, of string
		slip     func(s *step)
		says     string
	}{
		{"After names no step", "dird", func(s *step) { s.After = "directoriess" }, `"converge.dird" comes after "directoriess"`},
		{"After names a step behind it", "dird", func(s *step) { s.After = "presences" }, `"converge.dird" comes after "presences"`},
		{"a step is there twice", "dird", func(s *step) { s.Name = "directories" }, `"converge.directories" is there twice`},
		{"a step has no text", "dird", func(s *step) { s.Text = "" }, `"converge.dird": name, text and Open are all needed`},
		{"a step has no resource", "dird", func(s *step) { s.Open = nil }, `"converge.dird": name, text and Open are all needed`},
		{"a step has less time than the others", "dird", func(s *step) { s.Deadline = 1 }, `"converge.dird" has a shorter deadline than its phase`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := converge.Phase
			p.Steps = slices.Clone(p.Steps)
			i := slices.IndexFunc(p.Steps, func(s step) bool { return s.Name == c.of })
			if i < 0 {
				t.Fatalf("there is no step %s", p.ID(c.of))
			}
			c.slip(&p.Steps[i])
			if err := p.Check(); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the check says %v, want %s", err, c.says)
			}
		})
	}
}
