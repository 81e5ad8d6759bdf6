package converge

import (
	"context"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

func upstreamName(m mesh.Member) string { return directory.Name(m.UUID) }

// upstreams is an upstream for every link that the topology wants, and none of ours
// for others. A second link to a broker that an operator linked already would bring
// every message twice.
func upstreams(ctx context.Context, p *Pass) (engine.Resource, error) {
	b, err := p.Node.Servers.Broker(ctx)
	if err != nil {
		return nil, err
	}
	v, d := p.View.Broker, p.Decision
	if v.Err != nil {
		return nil, v.Err
	}
	if d.LinksErr != nil {
		return nil, d.LinksErr
	}
	var rs engine.All
	wanted := map[string]bool{}
	for _, m := range d.Links.Upstreams {
		if len(d.ByHand[m.Address]) > 0 {
			continue
		}
		u := rabbitmq.Upstream{
			Name:     upstreamName(m),
			Host:     m.Address,
			Account:  p.Node.Credentials().Account(),
			Password: p.Node.Credentials().BrokerPassword(),
			MaxHops:  d.Links.MaxHops,
			Links:    len(d.Links.Upstreams),
		}
		wanted[u.Name] = true
		if _, linked := v.Links[u.Name]; linked {
			rs = append(rs, b.Upstream(u))
		} else {
			rs = append(rs, b.LinkedUpstream(u))
		}
	}
	for _, u := range v.Upstreams {
		if directory.OfMesh(u.Name) && !wanted[u.Name] {
			rs = append(rs, b.NoUpstream(u.Name))
		}
	}
	return rs, nil
}
