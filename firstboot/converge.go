package firstboot

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

// Converge makes one pass: it brings this node to what the mesh needs, goes on
// past what fails, and writes the status. The error is what could not be done.
func (n *Node) Converge(ctx context.Context) (Status, []Change, error) {
	before, err := n.begin(ctx)
	if err != nil {
		return before, nil, err
	}

	if m, err := n.marks(); err == nil && m.LeavingWAN {
		if err := n.endLeaving(ctx); err != nil {
			return before, nil, err
		}
	}
	var changes []Change
	var errs []error
	for i, s := range ConvergePhase.Steps {
		stepCtx, cancel := context.WithTimeout(ctx, s.deadline())
		diff, err := n.runStep(stepCtx, ConvergePhase.Name, s, i+1, len(ConvergePhase.Steps))
		cancel()
		if len(diff) > 0 {
			changes = append(changes, Change{Step: ConvergePhase.Name + "." + s.Name, Diff: diff})
		}
		if err != nil {
			errs = append(errs, err)
		}
		if errors.Is(ctx.Err(), context.Canceled) {
			return before, changes, ctx.Err()
		}
		if ctx.Err() != nil {
			errs = append(errs, fmt.Errorf("there was no time for the steps after %s: %w", s.Name, ctx.Err()))
			break
		}
	}

	after := n.conclude(before, errs)
	return after, changes, errors.Join(append(errs, n.writeState(statusFile, after))...)
}

// marks is what converge remembers between passes and boots.
type marks struct {
	// Directories is the fingerprint of the sources that xivo-dird last read.
	Directories string `json:"directories"`
	// Credentials is that of the members whose credentials xivo-ctid-ng last read.
	Credentials string `json:"credentials,omitempty"`
	// CtidRestarted is the address for which xivo-ctid was restarted: once.
	CtidRestarted string `json:"ctid_restarted,omitempty"`
	// LeavingWAN: Consul was told to leave the WAN, which ends it, and was not
	// started again yet.
	LeavingWAN bool `json:"leaving_wan,omitempty"`
	// LeftWAN is why this node left the WAN: once for each reason.
	LeftWAN string `json:"left_wan,omitempty"`
	// Presences holds, per member, the xivo-ctid registration that was
	// announced to the local xivo-ctid.
	Presences map[string]string `json:"presences"`
}

func (n *Node) marks() (marks, error) {
	m := marks{Presences: map[string]string{}}
	if err := n.readState(marksFile, &m); err != nil {
		// It only saves work: without it, dird is restarted once more.
		n.Log.Warn("beginning anew without it", "error", err)
		m = marks{Presences: map[string]string{}}
	}
	return m, nil
}

// begin reads what the last pass left.
func (n *Node) begin(ctx context.Context) (before Status, err error) {
	n.reset()
	if before, err = n.ReadStatus(ctx); err != nil {
		return before, err
	}
	if n.firstPass = before.FirstPass; before.Boot != n.Platform.BootID() {
		n.firstPass = time.Now().UTC()
	}
	// Not to know the members is no reason to remove them.
	n.members = nil
	if err := n.readState(membersFile, &n.members); err != nil {
		return before, err
	}
	peers, err := others(ctx, n.Config.Peers)
	n.hasPeers = len(peers) > 0 || err != nil
	return before, nil
}

// mark changes the marks.
func (n *Node) mark(change func(*marks)) error {
	m, err := n.marks()
	if err != nil {
		return err
	}
	change(&m)
	return n.writeState(marksFile, m)
}

func registered(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	self := n.Self()
	return c.Registered(consul.Registration{
		ID:      mesh.ServiceName,
		Name:    mesh.ServiceName,
		Address: self.Address,
		Tags:    self.Tags(),
	}), nil
}

var webService = withDB(func(n *Node, db *pgx.Conn) Resource {
	return directory.Account(db, n.Platform, n.Credentials().Account(), n.Credentials().DirectoryPassword())
})

// sharing opens a step that only a version takes for which the procedure was
// written. A later one shares nothing with anybody.
func sharing(open func(context.Context, *Node) (Resource, error)) func(context.Context, *Node) (Resource, error) {
	return func(ctx context.Context, n *Node) (Resource, error) {
		if !n.Platform.Traits.Joinable {
			return nothing, nil
		}
		return open(ctx, n)
	}
}
