package node

import (
	"context"
	"errors"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// What several phases set up, each of them as this node has it.

// ConsulConfig is Consul's configuration.
func (n *Node) ConsulConfig() engine.Resource {
	token, err := n.ConsulToken()
	if err != nil {
		return engine.Broken(err)
	}
	s := consul.Settings{
		Name:        n.Identity().Name,
		Advertise:   n.Address(),
		Bind:        n.OwnNetwork() && n.Platform.HasSystemd(), // without, nothing gives it the address at a boot
		MasterToken: token,
	}
	if n.Config().Consul.Encrypt {
		s.GossipKey = n.Credentials().GossipKey()
	}
	return consul.ConfigFile(n.Platform, s)
}

// ConsulToken is the master token of this node's Consul, which nobody else needs: a
// server that was adopted keeps what it had, and another one has what follows from its
// own key.
func (n *Node) ConsulToken() (secret.Secret, error) {
	if n.Identity().Adopted {
		return consul.MasterToken(n.Platform)
	}
	key, err := overlay.ReadKey(n.Platform.Path(MeshDir))
	if errors.Is(err, fs.ErrNotExist) {
		// A plan, before there is one: any other stands for it.
		key, err = overlay.NewKey(), nil
	}
	if err != nil {
		return "", err
	}
	return secret.Token([16]byte(key.Derive("consul master token", 16))), nil
}

// CtidConfig is xivo-ctid's configuration, and that of the daemons which register
// beside it.
func (n *Node) CtidConfig() engine.Resource {
	return ctid.ConfigFile(n.Platform, n.Address())
}

// Federation is the broker's federation plugin, enabled and running.
func (n *Node) Federation(b *rabbitmq.Client) engine.Resource {
	return b.Federation(n.Platform, n.Servers.RestartBroker)
}

// FederationTime is what Federation needs at most.
const FederationTime = rabbitmq.EnableTime

// WithDB opens a step's resource on XiVO's database.
func WithDB(open func(n *Node, db *pgx.Conn) engine.Resource) func(context.Context, *Node) (engine.Resource, error) {
	return func(ctx context.Context, n *Node) (engine.Resource, error) {
		db, err := n.Servers.DB(ctx)
		if err != nil {
			return nil, err
		}
		return open(n, db), nil
	}
}

// WithBroker opens a step's resource on the broker.
func WithBroker(open func(n *Node, b *rabbitmq.Client) engine.Resource) func(context.Context, *Node) (engine.Resource, error) {
	return func(ctx context.Context, n *Node) (engine.Resource, error) {
		b, err := n.Servers.Broker(ctx)
		if err != nil {
			return nil, err
		}
		return open(n, b), nil
	}
}

// Plain opens a step's resource that needs no server.
func Plain(open func(n *Node) engine.Resource) func(context.Context, *Node) (engine.Resource, error) {
	return func(_ context.Context, n *Node) (engine.Resource, error) { return open(n), nil }
}

// Joinable says that contacts and statuses of this version can be shared as the
// procedure describes.
func (n *Node) Joinable() engine.Skip {
	if n.Platform.Traits.Joinable {
		return ""
	}
	return engine.Skip("XiVO " + n.Platform.Version.String() + " shares contacts and statuses in another way")
}

// UUIDInEnvironment says that the daemons of this version take the XiVO UUID from
// their environment.
func UUIDInEnvironment(n *Node) engine.Skip {
	if n.Platform.Traits.UUIDInEnvironment {
		return ""
	}
	return engine.Skip("the daemons of XiVO " + n.Platform.Version.String() + " take it from the database")
}
