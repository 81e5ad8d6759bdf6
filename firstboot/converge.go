package firstboot

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

// Converge makes one pass: it brings this node to what the mesh needs, goes on
// past what fails, and writes the status. The error is what could not be done.
func (n *Node) Converge(ctx context.Context) (Status, []Change, error) {
	n.reset()
	before, err := n.ReadStatus(ctx)
	if err != nil {
		return before, nil, err
	}
	// Not to know the members is no reason to remove them.
	if err := n.readState(membersFile, &n.members); err != nil {
		return before, nil, err
	}
	if peers, err := others(ctx, n.Config.Peers); len(peers) > 0 || err != nil {
		n.hasPeers = true
	}

	var changes []Change
	var errs []error
	for i, s := range ConvergePhase.Steps {
		stepCtx, cancel := context.WithTimeout(ctx, stepDeadline)
		diff, err := n.runStep(stepCtx, ConvergePhase.Name, s, i+1, len(ConvergePhase.Steps))
		cancel()
		if len(diff) > 0 {
			changes = append(changes, Change{Step: ConvergePhase.Name + "." + s.Name, Diff: diff})
		}
		if err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			return before, changes, ctx.Err()
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

func firewallRules(ctx context.Context, n *Node) (Resource, error) {
	if !n.Config.Firewall.Enabled {
		return nothing, nil
	}
	allowed, err := others(ctx, n.Config.Peers)
	if err != nil {
		n.Log.Debug("firewall: peers", "error", err)
	}
	allowed = append(allowed, n.Config.Firewall.Allow...)
	for _, m := range n.members {
		allowed = append(allowed, m.Address)
	}
	// Living WAN members proved that they hold the gossip key; a newcomer is one
	// before it is known as a member.
	if c, err := n.Consul(ctx); err == nil {
		wan, err := c.WANMembers(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range wan {
			if m.Alive {
				allowed = append(allowed, m.Address)
			}
		}
	}
	slices.Sort(allowed)
	policy := firewall.MeshPolicy(slices.Compact(allowed))
	if !n.Config.Consul.Encrypt {
		policy = policy.WithGossip()
	}
	if n.Config.Firewall.Strict {
		policy = policy.Strict(n.Platform.Traits)
	}
	return firewall.Rules(policy), nil
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
