package firstboot

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
)

// notice tells of something on this server that is for a person to put right.
func (n *Node) notice(format string, args ...any) {
	n.notices = append(n.notices, fmt.Sprintf(format, args...))
}

// Notices are what the last plan or pass found on this server that is not ours
// to change, and that a person should know of.
func (n *Node) Notices() []string { return n.notices }

// noticed looks at settings of XiVO that are right or wrong for a mesh, and
// leaves them alone.
func noticed(ctx context.Context, n *Node) (Resource, error) {
	db, err := n.DB(ctx)
	if err != nil {
		return nil, err
	}
	local, err := localAddresses()
	if err != nil {
		return nil, err
	}
	n.noticeMoved(local)
	foreign, err := identity.ForeignAddresses(ctx, db, n.Platform, func(a netip.Addr) bool { return local[a] != "" })
	if err != nil {
		return nil, err
	}
	n.notices = append(n.notices, foreign...)

	if !n.Platform.Traits.Joinable {
		return nothing, nil
	}
	separated, err := directory.ContextSeparation(ctx, db)
	if err != nil {
		return nil, err
	}
	if separated {
		n.notice("XiVO's context separation is on: of the other nodes, a user finds only those whose context has the name of his own")
	}
	return nothing, nil
}

// noticeMoved tells of a node whose address is no interface's any more.
func (n *Node) noticeMoved(local map[netip.Addr]string) {
	own := n.Identity().Advertise
	if a, err := netip.ParseAddr(own); err != nil || local[a] == "" {
		n.notice("this node's address %s is on no interface of this machine, so no other node reaches it: give it back, or boot another node with the new one and let this one leave", own)
	}
}
