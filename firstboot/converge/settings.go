package converge

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/localnet"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// settings looks at what of this machine and of XiVO is right or wrong for a mesh,
// and not ours to change.
func settings(ctx context.Context, n *node.Node) (notices []string, err error) {
	local, err := node.LocalAddresses()
	if err != nil {
		return nil, err
	}
	notices = addressMoved(n.Address(), n.OwnNetwork(), local)
	if !n.OwnNetwork() {
		shared, err := sharedNetwork(n.Config().Network)
		if err != nil {
			return notices, err
		}
		notices = append(notices, shared...)
	}
	// What cannot be read is told by the step.
	if gaps, err := n.FirewallGaps(ctx); err == nil {
		notices = append(notices, gaps...)
	}
	db, err := n.Servers.DB(ctx)
	if err != nil {
		return notices, err
	}
	foreign, err := identity.ForeignAddresses(ctx, db, n.Platform, func(a netip.Addr) bool { return local[a] != "" })
	if err != nil {
		return notices, err
	}
	notices = append(notices, foreign...)
	if !n.Platform.Traits.Joinable {
		return notices, nil
	}
	separated, err := directory.ContextSeparation(ctx, db)
	if separated {
		notices = append(notices, "XiVO's context separation is on: of the other nodes, a user finds only those whose context has the name of his own")
	}
	return notices, err
}

// sharedNetwork tells what is not protected where strangers may be in the network of the
// mesh.
func sharedNetwork(n cloudinit.Network) ([]string, error) {
	shared, err := localnet.DefaultRoute(n.Interface)
	if err != nil || !shared && !n.Shared {
		return nil, err
	}
	return []string{fmt.Sprintf("whoever is in the network of %s reads the contacts, statuses and passwords that the nodes tell each other, and can rule their Consul by port 8300: this firewall closes nothing there; leave `network` out of the documents of a new mesh, for a network of its own", n.Interface)}, nil
}

// addressMoved tells of a node whose address is no interface's any more.
func addressMoved(own string, ownNetwork bool, local map[netip.Addr]string) []string {
	if a, err := netip.ParseAddr(own); err == nil && local[a] != "" {
		return nil
	}
	if ownNetwork {
		return []string{fmt.Sprintf("this node's address %s in the mesh's network is not on this machine: `systemctl restart xivo-overlay-address` gives it back", own)}
	}
	return []string{fmt.Sprintf("this node's address %s is on no interface of this machine, so no other node reaches it: give it back, or boot another node with the new one and let this one leave", own)}
}
