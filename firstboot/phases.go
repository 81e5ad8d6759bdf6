// Package firstboot has the order of things: the one list of phases, what a boot
// does and whom it holds back, and the run on a server that works already. What
// the steps are is in become, sealing and converge; only its command imports it.
package firstboot

import (
	"log/slog"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// Phases returns the phases of a node's life after the bake, in the order in which
// they happen. `run`, `plan`, `--help` and the documentation read this list; there
// is no second one.
func Phases() []engine.Summary {
	return []engine.Summary{become.Phase.Summary(), become.SettlePhase.Summary(), converge.Phase.Summary()}
}

// keptForLife are the steps that set what a node keeps for as long as it lives.
func keptForLife() []engine.Step[*node.Node] {
	var kept []engine.Step[*node.Node]
	for _, p := range []engine.Phase[*node.Node]{become.Phase, become.SettlePhase} {
		for _, s := range p.Steps {
			if s.KeptForLife {
				kept = append(kept, s)
			}
		}
	}
	return kept
}

// Machine is the server that a command works on, and who is told of it.
type Machine struct {
	Root     string // "/" but in tests
	Log      *slog.Logger
	Progress engine.Progress
}

// Open finds out what it is. Close the node.
func (m Machine) Open() (*node.Node, error) {
	n, err := node.Open(m.Root, m.Log)
	if err != nil {
		return nil, err
	}
	n.Progress = m.Progress
	return n, nil
}
