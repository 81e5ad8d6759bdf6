package become

import (
	"context"
	"os"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// Identity decides who this node will be, all of it at once: a new XiVO UUID, or
// for a server that is adopted the one that its daemons have, the host's name, and
// the address at which the others reach it. Nothing is written.
func Identity(ctx context.Context, n *node.Node, adopt bool) (node.Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return node.Identity{}, err
	}
	address, err := node.Advertise(ctx, n.Config())
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
