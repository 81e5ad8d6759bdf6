package firstboot_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
)

// A name that stands twice would hide a step behind another's stamp, and a
// misspelt one the order of two.
func TestStepNamesAreUnique(t *testing.T) {
	if err := firstboot.Check(); err != nil {
		t.Error(err)
	}
	phases := map[string]bool{}
	for _, p := range firstboot.Phases() {
		if phases[p.Name] || p.Name == "" || p.Text == "" || len(p.Steps) == 0 {
			t.Errorf("phase %q", p.Name)
		}
		phases[p.Name] = true
		seen := map[string]bool{}
		for _, s := range p.Steps {
			if seen[s.Name] || s.Text == "" {
				t.Errorf("%s.%s", p.Name, s.Name)
			}
			seen[s.Name] = true
		}
	}
}

func TestThePhasesComeInTheirOrder(t *testing.T) {
	var names []string
	for _, p := range firstboot.Phases() {
		names = append(names, p.Name)
		if p.Once != (p.Name != "converge") {
			t.Errorf("%s happens once: %t", p.Name, p.Once)
		}
	}
	if diff := cmp.Diff([]string{"become", "settle", "converge"}, names); diff != "" {
		t.Error(diff)
	}
}

// Everything that a seal takes out, a first boot gives back.
func TestEverySealOperationHasItsCounterpart(t *testing.T) {
	steps := map[string]bool{}
	for _, p := range firstboot.Phases() {
		for _, s := range p.Steps {
			steps[p.Name+"."+s.Name] = true
		}
	}
	for _, op := range sealing.AllOperations() {
		if op.Counterpart.String() == "" {
			t.Errorf("%s has no counterpart", op.Name)
		}
		if (op.Counterpart.Step == "") == (op.Counterpart.By == "") {
			t.Errorf("%s: one of both gives it back: %+v", op.Name, op.Counterpart)
		}
		if step := op.Counterpart.Step; step != "" && !steps[step] {
			t.Errorf("%s: there is no step %s", op.Name, step)
		}
	}
}

// The doctor looks at these in each node, and at no other step of become.
func TestANodeKeepsItsIdentityForLife(t *testing.T) {
	var kept []string
	for _, s := range firstboot.KeptForLife() {
		kept = append(kept, s.Name)
	}
	if diff := cmp.Diff([]string{"hostname", "uuid-database", "uuid-files", "uuid-manager", "consul-token"}, kept); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}
