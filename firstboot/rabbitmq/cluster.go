package rabbitmq

import (
	"context"
	"fmt"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// clusterName is the resource of Client.ClusterName.
type clusterName struct {
	client *Client
	name   string
}

// ClusterName gives the broker its name in the mesh. It must be unique:
// downstreams of one name share one queue on their upstream, and each gets a
// part of its messages (docs/xivo/rabbitmq.md, Cluster name). To be set before the
// first upstream.
func (c *Client) ClusterName(name string) engine.Resource { return clusterName{c, name} }

func (n clusterName) Diff(ctx context.Context) ([]string, error) {
	found, err := n.client.api(ctx).GetClusterName()
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: read the cluster name: %w", err)
	}
	if found.Name == n.name {
		return nil, nil
	}
	// Neither is told: each is part of a node's identity.
	return []string{"the cluster name is another one"}, nil
}

func (n clusterName) Apply(ctx context.Context) error {
	if err := sent(n.client.api(ctx).SetClusterName(rabbithole.ClusterName{Name: n.name})); err != nil {
		return fmt.Errorf("rabbitmq: set the cluster name to %q: %w", n.name, err)
	}
	return nil
}
