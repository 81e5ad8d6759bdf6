package become

import (
	"context"
	"os"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

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
