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

// Identity decides who this node will be, all of it at once: a new XiVO UUID, or
// for a server that is adopted the one that its daemons have, and the host's name. It is
// an error where the mesh's network does not fit this machine. Nothing is written.
func Identity(ctx context.Context, n *node.Node, adopt bool) (node.Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return node.Identity{}, err
	}
	if err := n.CheckNetwork(ctx); err != nil {
		return node.Identity{}, err
	}
	id := node.Identity{Hostname: host, UUID: uuid.New(), Adopted: adopt}
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
