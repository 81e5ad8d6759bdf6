package firstboot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
)

const (
	productA  = "4c4c4544-0051-3510-8052-b4c04f4a4d31"
	productA2 = "44454c4c-5100-1035-8052-b4c04f4a4d31" // the same, byte-swapped
	productB  = "11111111-2222-3333-4444-555555555555"
)

// journalOf returns the journal of an instance that became, or only began.
func journalOf(i Instance, finished bool) *Journal {
	j := newJournal("", i, Identity{UUID: uuid.New()})
	if finished {
		j.Steps[BecomePhase.Name] = Stamp{State: done}
	}
	return j
}

func TestDecide(t *testing.T) {
	document := func(id string) *cloudinit.Config { return &cloudinit.Config{Identity: id} }
	auto := document(cloudinit.IdentityAuto)
	keep, regenerate := document(cloudinit.IdentityKeep), document(cloudinit.IdentityRegenerate)

	was := journalOf(Instance{"i-1", productA}, true)
	noProduct := journalOf(Instance{"i-1", ""}, true)
	begun := journalOf(Instance{"i-1", productA}, false)
	settled := journalOf(Instance{"i-1", productA}, true)
	settled.Steps[SettlePhase.Name] = Stamp{State: done}

	for _, c := range []struct {
		name  string
		found Found
		want  Action
	}{
		{"sealed, with a document", Found{Sealed: true, Document: auto, Instance: Instance{"i-1", productA}}, Become},
		{"sealed, without a document: must not run as the original", Found{Sealed: true}, Become},
		{"never sealed, no document", Found{Instance: Instance{"i-1", productA}}, LeaveAlone},
		{"never sealed, identity auto", Found{Document: auto}, LeaveAlone},
		{"never sealed, identity keep", Found{Document: keep}, Adopt},
		{"never sealed, identity regenerate", Found{Document: regenerate}, Become},

		{"second boot", Found{Journal: was, Sealed: true, Instance: Instance{"i-1", productA}, Document: auto}, Unchanged},
		{"second boot with the document broken", Found{Journal: was, Sealed: true, Instance: Instance{"i-1", productA}}, Unchanged},
		{"second boot, the become was cut off", Found{Journal: begun, Instance: Instance{"i-1", productA}, Document: auto}, Resume},
		{"the seed is detached: no instance id", Found{Journal: was, Instance: Instance{"", productA}}, Unchanged},
		{"the firmware swaps its bytes", Found{Journal: was, Instance: Instance{"i-1", productA2}}, Unchanged},
		{"the product UUID is not told any more", Found{Journal: was, Instance: Instance{"i-1", ""}}, Unchanged},

		{"the first document of a node that became without one", Found{Journal: settled, Instance: Instance{"i-1", productA}, Late: true}, Adopt},
		{"that document, while the node has not settled", Found{Journal: was, Instance: Instance{"i-1", productA}, Late: true}, Unchanged},
		{"that document, while the become was cut off", Found{Journal: begun, Instance: Instance{"i-1", productA}, Late: true}, Resume},
		{"that document, and one sign of a clone", Found{Journal: settled, Instance: Instance{"i-2", productA}, Late: true}, Hold},

		{"clone of a node: both signs", Found{Journal: was, Instance: Instance{"i-2", productB}}, Become},
		{"clone where no product UUID is known", Found{Journal: noProduct, Instance: Instance{"i-2", ""}}, Become},
		{"clone of a node that was cut off", Found{Journal: begun, Instance: Instance{"i-2", productB}}, Become},
		{"a copied keep is void", Found{Journal: was, Instance: Instance{"i-2", productB}, Document: keep}, Become},

		{"only the instance id changed", Found{Journal: was, Instance: Instance{"i-2", productA}}, Hold},
		{"only the instance id changed, bytes swapped", Found{Journal: was, Instance: Instance{"i-2", productA2}}, Hold},
		{"only the hardware changed", Found{Journal: was, Instance: Instance{"i-1", productB}}, Hold},
		{"only the hardware changed, and the seed is detached", Found{Journal: was, Instance: Instance{"", productB}}, Hold},
		{"a doubt that a person confirmed", Found{Journal: was, Instance: Instance{"i-1", productB}, Confirmed: true}, Become},
		{"confirming what is no doubt changes nothing", Found{Journal: was, Instance: Instance{"i-1", productA}, Confirmed: true}, Unchanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, why := Decide(c.found)
			if got != c.want {
				t.Errorf("%s (%s), want %s", got, why, c.want)
			}
			if why == "" {
				t.Error("no reason is given")
			}
		})
	}
}

func TestADamagedJournalIsAnErrorAndNotAFreshStart(t *testing.T) {
	for content, what := range map[string]string{"": "empty", "{": "cut off", `{"format": 9}`: "of another release"} {
		file := filepath.Join(t.TempDir(), "journal.json")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readJournal(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTheJournalIsReadBackAsItWasWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "journal.json")
	j := newJournal(file, Instance{"i-1", productA}, Identity{UUID: uuid.New(), Name: "xivo-1", Advertise: "10.0.0.1"})
	if err := j.stamp("become.hostname", running); err != nil {
		t.Fatal(err)
	}
	if err := j.stamp("become.uuid-files", done); err != nil {
		t.Fatal(err)
	}
	got, err := readJournal(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Identity != j.Identity || got.Instance != j.Instance || got.Done("become.hostname") || !got.Done("become.uuid-files") {
		t.Errorf("%+v", got)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", st.Mode())
	}
}

// A name that stands twice would hide a step behind another's stamp.
func TestStepNamesAreUnique(t *testing.T) {
	for _, p := range Phases() {
		seen := map[string]bool{}
		for _, s := range p.Steps {
			if seen[s.Name] || s.Text == "" || s.Open == nil {
				t.Errorf("%s.%s", p.Name, s.Name)
			}
			seen[s.Name] = true
		}
	}
}

// Everything that a seal takes out, a first boot gives back.
func TestEverySealOperationHasItsCounterpart(t *testing.T) {
	steps := map[string]bool{}
	for _, p := range Phases() {
		for _, s := range p.Steps {
			steps[p.Name+"."+s.Name] = true
		}
	}
	for _, op := range append(SealOperations(), LastOperations()...) {
		if op.Counterpart == "" {
			t.Errorf("%s has no counterpart", op.Name)
		}
		if step, ok := strings.CutPrefix(op.Counterpart, ours("")); ok && !steps[step] {
			t.Errorf("%s: there is no step %s", op.Name, step)
		}
	}
}
