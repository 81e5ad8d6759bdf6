package firstboot

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
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
	return c.Import(n.Platform.Path(exportFile), liveTokens), nil
}

func kvRetired(_ context.Context, n *Node) (Resource, error) {
	from, to := n.Platform.Path(exportFile), n.Platform.Path(restoredFile)
	return resource{
		diff: func(context.Context) ([]string, error) {
			_, err := os.Stat(from)
			if errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			return []string{exportFile + " was restored and is still in the way of the next export"}, err
		},
		apply: func(context.Context) error { return os.Rename(from, to) },
	}, nil
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
	brokerClean = withBroker(func(_ *Node, b *rabbitmq.Client) Resource { return b.NothingFederated() })
	brokerName  = withBroker(func(n *Node, b *rabbitmq.Client) Resource { return b.ClusterName(n.Identity().Name) })

	brokerAccount = withBroker(func(n *Node, b *rabbitmq.Client) Resource {
		return b.FederationUser(n.Credentials().Account(), n.Credentials().BrokerPassword())
	})
	brokerPolicy = withBroker(func(_ *Node, b *rabbitmq.Client) Resource { return b.Policy() })
)
