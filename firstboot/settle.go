package firstboot

import (
	"context"
	"errors"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
)

// liveTokens is where xivo-auth keeps its tokens: two nodes must not share them.
const liveTokens = "xivo/xivo-auth/"

func kvImported(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	if n.Identity().Adopted {
		return c.Import(n.Platform.Path(exportFile)), nil
	}
	return c.Import(n.Platform.Path(exportFile), liveTokens, notesPrefix), nil
}

func kvRetired(_ context.Context, n *Node) (Resource, error) {
	// It holds private contacts, and would be in the way of the next export.
	return seal.Gone(n.Platform, exportFile+"*", consul.AtRestDir), nil
}

// withBroker opens a step's resource on the broker.
func withBroker(open func(n *Node, b *rabbitmq.Client) Resource) func(context.Context, *Node) (Resource, error) {
	return func(ctx context.Context, n *Node) (Resource, error) {
		b, err := n.Broker(ctx)
		if err != nil {
			return nil, err
		}
		return open(n, b), nil
	}
}

var (
	brokerClean = withBroker(func(n *Node, b *rabbitmq.Client) Resource {
		if n.Identity().Adopted {
			return nothing // what an operator federated by hand is his
		}
		return b.NothingFederated()
	})
	brokerName = withBroker(func(n *Node, b *rabbitmq.Client) Resource { return b.ClusterName(n.Identity().Name) })

	brokerFederation = withBroker(func(n *Node, b *rabbitmq.Client) Resource { return b.Federation(n.Platform, n.restartBroker) })

	brokerAccount = withBroker(func(n *Node, b *rabbitmq.Client) Resource {
		return b.FederationUser(n.Credentials().Account(), n.Credentials().BrokerPassword())
	})
	brokerPolicy = withBroker(func(_ *Node, b *rabbitmq.Client) Resource { return b.Policy() })
)

// restartBroker is for once in the life of this process: every message of this
// server goes through the broker, and a second restart would not help either.
// One that there was no time to begin does not count.
func (n *Node) restartBroker(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.brokerRestarted {
		return errors.New("one did not help; see the broker's log")
	}
	n.brokerRestarted = true
	return n.Platform.Init.Restart(ctx, "rabbitmq-server")
}
