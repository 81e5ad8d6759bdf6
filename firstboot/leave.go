package firstboot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

// ErrNoMember is what Forget says of a node that it cannot take out.
var ErrNoMember = errors.New("no such member")

// Leave takes this node out of its mesh: it is noted at every member that lives
// that this node is gone, and they tell those that are away when they come back.
// Its own entries for others go, and Consul leaves the WAN, for which it is
// restarted.
func (n *Node) Leave(ctx context.Context) (Status, []Change, error) {
	var members []mesh.Member
	if err := n.readState(membersFile, &members); err != nil {
		return Status{}, nil, err
	}
	m := membership{Registered: n.registered()}
	for _, other := range members {
		m.Left = append(m.Left, other.Address)
	}
	// A node that leaves twice still knows whom it left.
	if len(m.Left) > 0 {
		if err := n.writeState(membershipFile, m); err != nil {
			return Status{}, nil, err
		}
	}
	return n.sayGone(ctx, n.Self())
}

// ComeBack undoes Leave, or somebody else's Forget: a later registration
// overrides what was noted. It joins those that it left: its own document need
// not name any of them.
func (n *Node) ComeBack(ctx context.Context) (Status, []Change, error) {
	if err := n.registerAgain(ctx); err != nil {
		return Status{}, nil, err
	}
	return n.Converge(ctx)
}

func (n *Node) registerAgain(ctx context.Context) error {
	m, err := n.membership()
	if err != nil {
		return err
	}
	c, err := n.Consul(ctx)
	if err == nil {
		err = n.readNotes(ctx, c)
	}
	if err != nil {
		return err
	}
	m.Registered = laterThan(n.gone[n.Self().UUID])
	if err := n.writeState(membershipFile, m); err != nil || len(m.Left) == 0 {
		return err
	}
	if err := ensure(ctx, c.JoinedWAN(m.Left)); err != nil {
		n.Log.Warn("none of those that this node left could be joined", "error", err)
	}
	return nil
}

// laterThan is now, or right after a time that a clock which is ahead of ours told:
// what is said last counts.
func laterThan(at time.Time) time.Time {
	if now := time.Now().UTC(); now.After(at) {
		return now
	}
	return at.Add(time.Nanosecond)
}

// Forget takes a member out that died, named by its UUID or its host name. One
// that lives is to leave by itself.
func (n *Node) Forget(ctx context.Context, which string) (mesh.Member, Status, []Change, error) {
	if err := n.readState(membersFile, &n.members); err != nil {
		return mesh.Member{}, Status{}, nil, err
	}
	m, err := memberNamed(n.members, which)
	if err != nil {
		return m, Status{}, nil, err
	}
	c, err := n.Consul(ctx)
	if err != nil {
		return m, Status{}, nil, err
	}
	wan, err := c.WANMembers(ctx)
	if err != nil {
		return m, Status{}, nil, err
	}
	for _, w := range wan {
		if w.Alive && w.Datacenter == m.Name {
			return m, Status{}, nil, fmt.Errorf("%s is alive: run `xivo-firstboot leave` there", m)
		}
	}
	s, changes, err := n.sayGone(ctx, m)
	return m, s, changes, err
}

// memberNamed finds a member by its UUID or host name.
func memberNamed(members []mesh.Member, which string) (mesh.Member, error) {
	var found []mesh.Member
	var all []string
	for _, m := range members {
		all = append(all, m.String())
		if m.UUID.String() == strings.ToLower(which) || m.Host == which {
			found = append(found, m)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return mesh.Member{}, fmt.Errorf("%w: several have the host name %s, name one by its UUID: %s", ErrNoMember, which, strings.Join(all, ", "))
	case len(members) == 0:
		return mesh.Member{}, fmt.Errorf("%w as %s: this node knows no other", ErrNoMember, which)
	}
	return mesh.Member{}, fmt.Errorf("%w as %s; the members are: %s", ErrNoMember, which, strings.Join(all, ", "))
}

// sayGone notes it here first, and then at everybody who lives; those that do
// not answer are told by others, or when they ask.
func (n *Node) sayGone(ctx context.Context, m mesh.Member) (Status, []Change, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return Status{}, nil, err
	}
	wan, err := n.livingOthers(ctx, c)
	if err != nil {
		return Status{}, nil, err
	}
	key, now := goneNotes+m.UUID.String(), laterThan(m.Registered).Format(time.RFC3339Nano)
	if err := c.SetNote(ctx, "", key, now); err != nil {
		return Status{}, nil, err
	}
	for _, w := range wan {
		if err := c.SetNote(ctx, w.Datacenter, key, now); err != nil {
			n.Log.Warn("this member hears of it from the others", "member", w.Name, "error", err)
		}
	}
	return n.Converge(ctx)
}
