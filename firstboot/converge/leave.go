package converge

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// ErrNoMember is what Forget says of a node that it cannot take out.
var ErrNoMember = errors.New("no such member")

// Leave takes this node out of its mesh: its registration is over for every member, also
// for those that are away now, when they come back. Its own entries for others go, and
// Consul leaves the WAN, for which it is restarted.
func Leave(ctx context.Context, n *node.Node) (Result, error) {
	return bury(ctx, n, n.Identity().UUID)
}

// bury ends a registration, and makes a pass with what follows. The service of the mesh's
// network tells it to the others, so it is started where it does not run.
func bury(ctx context.Context, n *node.Node, id uuid.UUID) (Result, error) {
	if err := serving(ctx, n); err != nil {
		return Result{}, fmt.Errorf("nothing was changed, since the others cannot be told: %w; put that right, and do this again", err)
	}
	if err := n.Overlay().Bury(ctx, id); err != nil {
		return Result{}, err
	}
	return once(ctx, n)
}

// serving is the service of the mesh's network answering, started where it does not run.
func serving(ctx context.Context, n *node.Node) error {
	_, err := n.Overlay().Status(ctx)
	if !errors.Is(err, overlay.ErrNotRunning) {
		return err
	}
	if err := n.Platform.Init.Start(ctx, OverlayUnit); err != nil {
		return fmt.Errorf("start %s: %w", OverlayUnit, err)
	}
	return awaitOverlay(ctx, n)
}

// ComeBack undoes Leave, or somebody else's Forget, with a registration that is higher
// than what is over.
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
	if err := serving(ctx, n); err != nil {
		return err
	}
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
	return restartOverlay(ctx, n)
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
	// While our own service is down, nobody lives.
	if err := serving(ctx, n); err != nil {
		return m, Result{}, fmt.Errorf("nothing was changed, since nothing tells whether %s lives: %w", m, err)
	}
	if alive(ctx, m) {
		return m, Result{}, fmt.Errorf("%s is alive: run `xivo-firstboot leave` there", m)
	}
	r, err := bury(ctx, n, m.UUID)
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
