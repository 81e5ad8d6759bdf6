package firstboot

import (
	"context"
	"errors"
	"fmt"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
)

// ErrNotDecided: nothing was begun, since the machine is in doubt, or no document
// asks for a change.
var ErrNotDecided = errors.New("nothing is begun")

// begin takes the decision on the identity and writes it to the journal. It
// says what was decided, and why. Nothing but our own state is changed.
func begin(ctx context.Context, n *node.Node, confirmed bool) (node.Action, string, error) {
	action, why, err := prepare(ctx, n, confirmed)
	if err != nil {
		return action, why, err
	}
	switch action {
	case node.InDoubt, node.LeaveAlone:
		// Another process changed the journal since it was read.
		return action, why, fmt.Errorf("%w: %s", ErrNotDecided, why)
	case node.Resume, node.TakeOn, node.Adopt:
		// What any step cannot even read is told while all is as it was.
		if _, err := n.Runner().Plan(ctx, become.Phase); err != nil {
			return action, why, err
		}
	}
	switch action {
	case node.Resume:
		return action, why, n.Journal.Save()
	case node.TakeOn, node.Adopt:
		if err := n.MakeStateDir(); err != nil {
			return action, why, err
		}
		if err := overlayStopped(ctx, n); err != nil {
			return action, why, err
		}
		if err := n.ForgetMesh(); err != nil {
			return action, why, err
		}
		// Before the journal: whoever resumes from it needs the document.
		if err := n.KeepDocument(); err != nil {
			return action, why, err
		}
		return action, why, n.Journal.Save()
	}
	return action, why, nil
}

// overlayStopped ends the service that has the key of who this machine was: of a copy
// that ran, the original's. A boot finds none.
func overlayStopped(ctx context.Context, n *node.Node) error {
	runs, err := n.Platform.Init.Active(ctx, converge.OverlayUnit)
	if err != nil || !runs {
		return err
	}
	return n.Platform.Init.Stop(ctx, converge.OverlayUnit)
}

// prepare takes the decision on the identity, which is in the journal of this
// process then. Nothing is written.
func prepare(ctx context.Context, n *node.Node, confirmed bool) (node.Action, string, error) {
	action, why := n.Decide(confirmed)
	switch action {
	case node.Resume:
		if n.Config() == nil {
			return action, why, fmt.Errorf("the document that this node began with cannot be read: %w", n.Document.Err)
		}
		n.Journal.Undo(kvexport.RedoneSteps...)
		return action, why, nil
	case node.TakeOn, node.Adopt:
	default:
		return action, why, nil
	}
	if n.Document.Err != nil {
		return action, why, n.Document.Err
	}
	if n.Document.Pending != nil {
		n.Document.Config, n.Document.Pending = n.Document.Pending, nil
	}
	if err := n.CheckSchema(ctx); err != nil {
		return action, why, err
	}
	if n.Journal == nil {
		if err := sealing.Verify(n); err != nil {
			return action, why, err
		}
	}
	if n.Config() == nil {
		// A sealed image without a document must not run as the original did.
		n.Document.Config = become.Alone()
		why += ", without a document: it will be alone"
	}
	id, err := become.Identity(ctx, n, action == node.Adopt)
	if err != nil {
		return action, why, err
	}
	original := n.Journal
	id.NoDocument = n.Document.Missing != nil && (original == nil || original.Identity.NoDocument)
	n.Journal = n.NewJournal(id)
	if original != nil {
		if stamp := kvexport.Inherited(original); stamp != "" {
			n.Journal.Steps[stamp] = original.Steps[stamp]
		}
	}
	return action, why, nil
}
