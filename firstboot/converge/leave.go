package converge

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// ErrNoMember is what Forget says of a node that it cannot take out.
var ErrNoMember = errors.New("no such member")

// Leave takes this node out of its mesh: it is noted at every member that lives
// that this node left, and they tell those that are away when they come back.
// Its own entries for others go, and Consul leaves the WAN, for which it is
// restarted.
func Leave(ctx context.Context, n *node.Node) (Result, error) {
	var members []mesh.Member
	if err := n.ReadState(node.MembersFile, &members); err != nil {
		return Result{}, err
	}
	m := node.Membership{Registered: n.Self().Registered}
	for _, other := range members {
		m.Left = append(m.Left, other.Address)
	}
	// A node that leaves twice still knows whom it left.
	if len(m.Left) > 0 {
		if err := n.WriteState(node.MembershipFile, m); err != nil {
			return Result{}, err
		}
	}
	return noteDeparture(ctx, n, n.Self())
}

// buried ends a registration in the overlay, and passes on here what follows.
func buried(ctx context.Context, n *node.Node, id uuid.UUID) (Result, error) {
	if err := n.Overlay().Bury(ctx, id); err != nil {
		return Result{}, err
	}
	return once(ctx, n)
}

// ComeBack undoes Leave, or somebody else's Forget: a later registration
// overrides what was noted. It joins those that it left: its own document need
// not name any of them.
func ComeBack(ctx context.Context, n *node.Node) (Result, error) {
	if err := registerAgain(ctx, n); err != nil {
		return Result{}, err
	}
	return once(ctx, n)
}

// once makes a pass in a process that makes no other.
func once(ctx context.Context, n *node.Node) (Result, error) {
	var m Memory
	defer m.Close()
	return Converge(ctx, n, &m)
}

func registerAgain(ctx context.Context, n *node.Node) error {
	m, err := n.Membership()
	if err != nil {
		return err
	}
	if n.HasOverlay() {
		st, err := n.Overlay().Status(ctx)
		if err != nil {
			return err
		}
		// A tombstone of more than this node ever registered is told by who refuses it.
		for _, r := range st.Refused {
			m.Registrations = max(m.Registrations, r.Registered)
		}
		m.Registrations++
		if err := n.WriteState(node.MembershipFile, m); err != nil {
			return err
		}
		return n.Platform.Init.Restart(ctx, OverlayUnit)
	}
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return err
	}
	notes, err := readNotes(ctx, n, c)
	if err != nil {
		return err
	}
	m.Registered = laterThan(notes.Departed[n.Identity().UUID])
	if err := n.WriteState(node.MembershipFile, m); err != nil || len(m.Left) == 0 {
		return err
	}
	if err := engine.Ensure(ctx, c.JoinedWAN(m.Left)); err != nil {
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
// that lives is to leave by itself: that is an error, and so is ErrNoMember.
func Forget(ctx context.Context, n *node.Node, which string) (mesh.Member, Result, error) {
	var members []mesh.Member
	if err := n.ReadState(node.MembersFile, &members); err != nil {
		return mesh.Member{}, Result{}, err
	}
	m, err := memberNamed(members, which)
	if err != nil {
		return m, Result{}, err
	}
	if n.HasOverlay() {
		if alive(ctx, m) {
			return m, Result{}, fmt.Errorf("%s is alive: run `xivo-firstboot leave` there", m)
		}
		r, err := buried(ctx, n, m.UUID)
		return m, r, err
	}
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return m, Result{}, err
	}
	wan, err := c.WANMembers(ctx)
	if err != nil {
		return m, Result{}, err
	}
	for _, w := range wan {
		if w.Alive && w.Datacenter == m.Name {
			return m, Result{}, fmt.Errorf("%s is alive: run `xivo-firstboot leave` there", m)
		}
	}
	r, err := noteDeparture(ctx, n, m)
	return m, r, err
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

// noteDeparture notes it here first, and then at everybody who lives; those that
// do not answer are told by others, or when they ask.
func noteDeparture(ctx context.Context, n *node.Node, m mesh.Member) (Result, error) {
	if n.HasOverlay() {
		return buried(ctx, n, m.UUID)
	}
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return Result{}, err
	}
	living, err := livingOthers(ctx, c, n.Identity().Name)
	if err != nil {
		return Result{}, err
	}
	at := laterThan(m.Registered)
	if err := tellDeparted(ctx, c, "", m.UUID, at); err != nil {
		return Result{}, err
	}
	for _, w := range living {
		if err := tellDeparted(ctx, c, w.Datacenter, m.UUID, at); err != nil {
			n.Log.Warn("this member hears of it from the others", "member", w.Name, "error", err)
		}
	}
	return once(ctx, n)
}
