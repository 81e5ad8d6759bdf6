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

// wan is this node being in Consul's WAN with its peers, or, when it left the mesh
// or the mesh refused it, not being there.
func wan(ctx context.Context, p *Pass) (engine.Resource, error) {
	if p.View.WAN.Err != nil {
		return nil, p.View.WAN.Err
	}
	c, err := p.Node.Servers.Consul(ctx)
	if err != nil {
		return nil, err
	}
	switch d := p.Decision; {
	case d.AskAgain:
		return p.looksAgain(refusalForgotten(p, c)), nil
	case d.KeepsOut != "":
		return wanLeft(p, c), nil
	case len(d.Join) == 0:
		return returned(p.Node), p.View.Peers.Err
	default:
		return engine.All{returned(p.Node), p.looksAgain(joined(p, c))}, nil
	}
}

// joined is the WAN having this node. In the mesh's own network every member that can
// be reached is joined by itself: two halves that were apart have nobody in common.
func joined(p *Pass, c *consul.Client) engine.Resource {
	if !p.Node.HasOverlay() {
		return c.JoinedWAN(p.Decision.Join)
	}
	var all engine.All
	for _, address := range p.Decision.Join {
		all = append(all, c.JoinedWAN([]string{address}))
	}
	return all
}

// returned is a node that does not keep out any more not being marked as one that
// left the WAN: a boot would guard it as such.
func returned(n *node.Node) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		if readMarks(n).LeftWAN == "" {
			return nil, nil
		}
		return []string{"this node had left Consul's WAN, and comes back"}, nil
	}, func(context.Context) error { return mark(n, func(m *Marks) { m.LeftWAN = "" }) })
}

// refusalForgotten: what was refused may be put right by now, so each start asks
// once more.
func refusalForgotten(p *Pass, c *consul.Client) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		if p.memory.askedAgain {
			return nil, nil
		}
		return []string{"the mesh is asked again: this node was " + p.View.refusal()}, nil
	}, func(ctx context.Context) error {
		if err := mark(p.Node, func(m *Marks) { m.LeftWAN = "" }); err != nil {
			return err
		}
		if err := c.RemoveNotes(ctx, refusedNotes); err != nil {
			return err
		}
		p.memory.askedAgain = true
		return nil
	})
}

// wanLeft is this node having left the WAN, also after Consul's next start: once
// for each reason, since those whose document names it may bring it back.
func wanLeft(p *Pass, c *consul.Client) engine.Resource {
	n, why := p.Node, p.Decision.KeepsOut
	return engine.New(func(ctx context.Context) ([]string, error) {
		living, err := livingOthers(ctx, c, p.View.Self.Name)
		if err != nil || len(living) == 0 || readMarks(n).LeftWAN == why {
			return nil, err
		}
		return []string{"this node is still in Consul's WAN, with " + living[0].Name}, nil
	}, func(ctx context.Context) error {
		// First the ports and the file, or others and its own start would bring it
		// back at once. The firewall's own step tells what is wrong with it.
		if firewallWanted(p) == "" {
			if err := engine.Ensure(ctx, firewallRules(p)); err != nil {
				n.Log.Debug("leave the WAN with its ports open", "error", err)
			}
		}
		if err := engine.Ensure(ctx, n.ConsulConfig(nil)); err != nil {
			return err
		}
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
