package firstboot

import (
	"context"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// canaryWait is how long a pass waits for the members' answers.
const canaryWait = 3 * time.Second

func upstreamName(m mesh.Member) string { return directory.Name(m.UUID) }

func upstreams(ctx context.Context, n *Node) (Resource, error) {
	b, err := n.Broker(ctx)
	if err != nil {
		return nil, err
	}
	hub, err := n.hub(ctx)
	if err != nil {
		return nil, err
	}
	links, err := mesh.Topology{Kind: n.Config.Topology, Hub: hub}.Desired(n.Self(), n.members)
	if err != nil {
		return nil, err
	}
	found, err := b.Upstreams(ctx)
	if err != nil {
		return nil, err
	}
	// A second link to the same broker would bring every message twice.
	var hosts []string
	upstreamOf := map[string]string{}
	for _, u := range found {
		if directory.Ours(u.Name) {
			continue
		}
		for _, host := range u.Hosts {
			hosts, upstreamOf[host] = append(hosts, host), u.Name
		}
	}
	byHand := n.leading(ctx, hosts)
	linked, err := b.Links(ctx)
	if err != nil {
		return nil, err
	}
	var rs all
	wanted := map[string]bool{}
	for _, m := range links.Upstreams {
		if hosts := byHand[m.Address]; len(hosts) > 0 {
			n.notice("the upstream %s was made by hand for %s (%s): it is left as it is, and not doubled", upstreamOf[hosts[0]], m.Host, m.Address)
			continue
		}
		u := rabbitmq.Upstream{
			Name:     upstreamName(m),
			Host:     m.Address,
			Account:  n.Credentials().Account(),
			Password: n.Credentials().BrokerPassword(),
			MaxHops:  links.MaxHops,
			Links:    len(links.Upstreams),
		}
		wanted[u.Name] = true
		if _, ok := linked[u.Name]; ok {
			rs = append(rs, b.Upstream(u))
		} else {
			rs = append(rs, b.LinkedUpstream(u))
		}
	}
	for _, u := range found {
		if directory.Ours(u.Name) && !wanted[u.Name] {
			rs = append(rs, b.NoUpstream(u.Name))
		}
	}
	return rs, nil
}

// canaryAnswered sends a message to every member and waits for the answers.
// Nothing can be applied: who does not answer is in the state.
func canaryAnswered(ctx context.Context, n *Node) (Resource, error) {
	canary, err := n.Canary(ctx)
	if err != nil {
		return nil, err
	}
	if len(n.members) == 0 {
		return nothing, nil
	}
	wanted := make([]string, len(n.members))
	for i, m := range n.members {
		wanted[i] = m.UUID.String()
	}
	ctx, cancel := context.WithTimeout(ctx, canaryWait)
	defer cancel()
	answered, err := canary.Ping(ctx, wanted...)
	if err != nil {
		return nil, err
	}
	n.answered = answered
	return nothing, nil
}
