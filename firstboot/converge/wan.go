package converge

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// wan is this node being in Consul's WAN with the members that are reached, or, when it
// left the mesh or the mesh refused it, not being there.
func wan(ctx context.Context, p *Pass) (engine.Resource, error) {
	if err := errors.Join(p.View.WAN.Err, p.View.Overlay.Err); err != nil {
		return nil, err
	}
	c, err := p.Node.Servers.Consul(ctx)
	if err != nil {
		return nil, err
	}
	if p.Decision.KeepsOut != "" {
		return wanLeft(p, c), nil
	}
	return engine.All{returned(p.Node), p.looksAgain(c.JoinedWAN(p.Decision.Join))}, nil
}

// returned is a node that does not keep out any more not being marked as one that
// left the WAN.
func returned(n *node.Node) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		if readMarks(n).LeftWAN == "" {
			return nil, nil
		}
		return []string{"this node had left Consul's WAN, and comes back"}, nil
	}, func(context.Context) error { return mark(n, func(m *Marks) { m.LeftWAN = "" }) })
}

// wanLeft is this node having left the WAN, also after Consul's next start: once
// for each reason, since somebody may bring it back.
func wanLeft(p *Pass, c *consul.Client) engine.Resource {
	n, why := p.Node, p.Decision.KeepsOut
	return engine.New(func(ctx context.Context) ([]string, error) {
		living, err := livingOthers(ctx, c, p.View.Self.Name)
		if err != nil || len(living) == 0 || readMarks(n).LeftWAN == why {
			return nil, err
		}
		return []string{"this node is still in Consul's WAN, with " + living[0].Name}, nil
	}, func(ctx context.Context) error {
		// From here on Consul is down until it is started, by the next pass if not
		// by this one.
		if err := mark(n, func(m *Marks) { m.LeavingWAN, m.LeftWAN = true, why }); err != nil {
			return err
		}
		if err := c.Leave(ctx); err != nil {
			return err
		}
		return endLeaving(ctx, n)
	})
}

// restartTime is how long Consul may take to stop and to start.
const restartTime = time.Minute

// endLeaving starts Consul again after it left, with nobody in its memory. It
// does so also when ctx ends meanwhile.
func endLeaving(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTime)
	defer cancel()
	err := n.Platform.Init.Stop(ctx, n.Platform.Service(platform.Consul))
	if err == nil {
		err = consul.ForgetWAN(n.Platform)
	}
	if err = errors.Join(err, n.Platform.Init.Start(ctx, n.Platform.Service(platform.Consul))); err != nil {
		return fmt.Errorf("start Consul again, which left the WAN: %w", err)
	}
	n.Servers.Redial()
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return err
	}
	if err := c.WaitLeader(ctx); err != nil {
		return err
	}
	return mark(n, func(m *Marks) { m.LeavingWAN = false })
}
