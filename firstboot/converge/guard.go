package converge

import (
	"context"
	"errors"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// guardWait is how long a boot waits for the firewall.
const guardWait = 15 * time.Second

// firewallRules are those of a pass.
func firewallRules(p *Pass) engine.Resource {
	if p.Node.HasOverlay() {
		return grounded(p.Node)
	}
	return rules(p.Node, p.Decision.LetIn, p.Decision.staysOut())
}

// grounded is what this machine has of the overlay while its service is down.
func grounded(n *node.Node) engine.Resource {
	ground, err := n.OverlayGround()
	if err != nil {
		return engine.Broken(err)
	}
	return ground
}

// rules let these addresses use the ports that we opened. A node that keeps out is
// not to be joined by those whose document names it.
func rules(n *node.Node, letIn []string, keepsOut bool) engine.Resource {
	policy := firewall.MeshPolicy(letIn)
	if !n.Config().Consul.Encrypt || keepsOut {
		policy = policy.WithGossip()
	}
	if n.Config().Firewall.Strict {
		policy = policy.Strict(n.Platform.Traits)
	}
	return firewall.Rules(policy)
}

// Guard sets the firewall up before Consul and the broker start, from what is known
// without them. A node is not held back when that fails.
func Guard(ctx context.Context, n *node.Node) { guard(ctx, n, WAN{}) }

// GuardNewcomer lets those that live in the WAN ask this node who it is, as soon
// as Consul runs: they know it then when its services are up.
func GuardNewcomer(ctx context.Context, n *node.Node) {
	var w WAN
	c, err := n.Servers.Consul(ctx)
	if err == nil {
		w.Living, err = livingOthers(ctx, c, n.Identity().Name)
	}
	if err != nil {
		n.Log.Warn("the mesh takes this node in when its services are up", "error", err)
		return
	}
	guard(ctx, n, w)
}

func guard(ctx context.Context, n *node.Node, w WAN) {
	if n.Journal == nil || n.Config() == nil || !n.Config().Firewall.Enabled || n.HasOverlay() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	v := &View{At: time.Now(), Self: n.Self(), Document: n.Config(), WAN: w}
	err := n.ReadState(node.MembersFile, &v.Known)
	if err == nil {
		var unresolved error
		if v.Peers.Addresses, unresolved = node.OtherAddresses(ctx, v.Document.Peers); unresolved != nil {
			n.Log.Debug("firewall: peers", "error", unresolved)
		}
		d := Decision{Members: v.Known, Join: v.Peers.Addresses, Newcomer: len(v.Document.Peers) > 0}
		if d.KeepsOut = readMarks(n).LeftWAN; d.staysOut() {
			d.Join = nil
		}
		err = engine.Ensure(ctx, rules(n, letIn(v, d), d.staysOut()))
	}
	if err != nil {
		n.Log.Error("the mesh's ports are not guarded until a pass of converge succeeds", "error", err)
	}
}

// Isolate keeps a machine out of the mesh that may be a copy, until a person has
// decided: two with one name would each get a part of the other's messages. To
// be called before Consul and the broker start. Telephony is not held back when
// it fails.
func Isolate(ctx context.Context, n *node.Node) {
	if n.Journal == nil || n.Config() == nil {
		return
	}
	// What it has is of the document that it became with, whatever a new seed says.
	if last, err := n.LastDocument(); err == nil {
		n.Document.Config = last
	}
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	isolated := engine.All{rabbitmq.ManagementOnly(n.Platform), n.ConsulConfig(nil)}
	if n.Config().Firewall.Enabled && !n.HasOverlay() {
		isolated = append(engine.All{rules(n, n.Config().Firewall.Allow, true)}, isolated...)
	}
	if err := errors.Join(isolated.Apply(ctx), consul.ForgetWAN(n.Platform)); err != nil {
		n.Log.Error("the mesh parts of this machine are not held as they should be", "error", err)
	}
}
