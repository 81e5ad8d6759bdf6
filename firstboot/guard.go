package firstboot

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// guardWait is how long a boot waits for the firewall.
const guardWait = 15 * time.Second

// firewallRules lets in who is named by the document, the members, and newcomers
// so far as they have to ask: members ask a newcomer before they know anything of
// it, and let it in when they do.
func firewallRules(ctx context.Context, n *Node) (Resource, error) {
	if !n.Config.Firewall.Enabled {
		return nothing, nil
	}
	allowed, err := n.peers(ctx)
	if err != nil {
		n.Log.Debug("firewall: peers", "error", err)
	}
	allowed = append(allowed, n.Config.Firewall.Allow...)
	for _, m := range n.members {
		allowed = append(allowed, m.Address)
	}
	for _, w := range n.wan {
		isRefused := slices.ContainsFunc(n.refused, func(r mesh.Refusal) bool { return r.Member.Name == w.Datacenter })
		since, silent := n.unanswered[w.Address]
		if n.onTrial && !isRefused || silent && time.Since(since) > letInAfter {
			allowed = append(allowed, w.Address)
		}
	}
	slices.Sort(allowed)
	policy := firewall.MeshPolicy(slices.Compact(allowed))
	// A node that keeps out is not to be joined by those whose document names it.
	if !n.Config.Consul.Encrypt || n.out() {
		policy = policy.WithGossip()
	}
	if n.Config.Firewall.Strict {
		policy = policy.Strict(n.Platform.Traits)
	}
	return firewall.Rules(policy), nil
}

// Guard sets the firewall up before Consul and the broker start, from what is
// known without them. A node is not held back when that fails.
func (n *Node) Guard(ctx context.Context) {
	if n.Journal == nil || n.Config == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	err := n.readState(membersFile, &n.members)
	if err == nil {
		var rules Resource
		if rules, err = firewallRules(ctx, n); err == nil {
			err = ensure(ctx, rules)
		}
	}
	if err != nil {
		n.Log.Error("the mesh's ports are not guarded until a pass of converge succeeds", "error", err)
	}
}

// GuardNewcomer lets those that live in the WAN ask this node who it is, as soon
// as Consul runs: they know it then when its services are up.
func (n *Node) GuardNewcomer(ctx context.Context) {
	c, err := n.Consul(ctx)
	if err == nil {
		n.wan, err = n.livingOthers(ctx, c)
	}
	if err != nil {
		n.Log.Warn("the mesh takes this node in when its services are up", "error", err)
		return
	}
	n.onTrial = len(n.Config.Peers) > 0
	n.Guard(ctx)
}

// Isolate keeps a machine out of the mesh that may be a copy, until a person has
// decided: two with one name would each get a part of the other's messages. To
// be called before Consul and the broker start. Telephony is not held back when
// it fails.
func (n *Node) Isolate(ctx context.Context, why string) {
	if n.Journal == nil || n.Config == nil {
		return
	}
	n.verdict, n.members = why, nil
	// What it has is of the document that it became with, whatever a new seed says.
	if was, err := n.lastDocument(); err == nil {
		n.Config = was
	}
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	rules, err := firewallRules(ctx, n)
	for _, r := range []Resource{rules, rabbitmq.ManagementOnly(n.Platform), n.consulFile(nil)} {
		if r != nil {
			err = errors.Join(err, ensure(ctx, r))
		}
	}
	if err = errors.Join(err, consul.ForgetWAN(n.Platform)); err != nil {
		n.Log.Error("the mesh parts of this machine are not held as they should be", "error", err)
	}
}
