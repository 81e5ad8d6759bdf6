package become

import (
	"context"
	"net/netip"
	"os"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/localnet"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// aloneRanges are where the address of a node without a document may come from.
var aloneRanges = []netip.Prefix{overlay.DefaultRange, netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("172.31.88.0/24"), netip.MustParsePrefix("192.168.88.0/24")}

// Alone is the document of a node that was given none. Nobody chose the range of its
// network, so that it is one which this machine does not use.
func Alone() *cloudinit.Config {
	c := cloudinit.Alone()
	for _, in := range aloneRanges {
		if localnet.RangeFree(in, overlay.Interface) == nil {
			c.Network.Range = in
			break
		}
	}
	return c
}

// rangeFree refuses a range for the mesh's network that this machine uses for something
// else: what is there would be reached no more.
func rangeFree(ctx context.Context, n *node.Node) error {
	var outside []localnet.Outside
	peers, err := node.OtherAddresses(ctx, n.Config().Peers)
	if err != nil {
		n.Log.Debug("peers that cannot be resolved yet", "error", err)
	}
	for _, p := range peers {
		if a, err := netip.ParseAddr(p); err == nil {
			outside = append(outside, localnet.Outside{Address: a, What: "a peer of the document"})
		}
	}
	return localnet.RangeFree(n.Config().Network.Range, overlay.Interface, outside...)
}

// Identity decides who this node will be, all of it at once: a new XiVO UUID, or
// for a server that is adopted the one that its daemons have, the host's name, and
// the address at which the others reach it. Nothing is written.
func Identity(ctx context.Context, n *node.Node, adopt bool) (node.Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return node.Identity{}, err
	}
	address := "" // drawn by a step, where the mesh has a network of its own
	if n.HasOverlay() {
		err = rangeFree(ctx, n)
	} else {
		address, err = node.Advertise(ctx, n.Config())
	}
	if err != nil {
		return node.Identity{}, err
	}
	id := node.Identity{Hostname: host, Advertise: address, UUID: uuid.New(), Adopted: adopt}
	if adopt {
		db, err := n.Servers.DB(ctx)
		if err != nil {
			return node.Identity{}, err
		}
		if id.UUID, err = identity.UUID(ctx, db, n.Platform); err != nil {
			return node.Identity{}, err
		}
	} else {
		// A manifest beside a journal is that of the image of the original.
		id.Copied = n.Journal != nil || !n.BrokerSealed()
	}
	id.Name = identity.NodeName(host, id.UUID)
	return id, nil
}
