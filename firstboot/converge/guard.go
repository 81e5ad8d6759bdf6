package converge

import (
	"context"
	"errors"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// guardWait is how long the firewall is waited for before Consul and the broker start.
const guardWait = 15 * time.Second

// Guard sets the firewall before Consul and the broker start. A node is not held back
// when that fails.
func Guard(ctx context.Context, n *node.Node) {
	if n.Journal == nil || n.Config() == nil || node.WantsFirewall(n) != "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, guardWait)
	defer cancel()
	if err := engine.Ensure(ctx, n.Firewall()); err != nil {
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
	isolated := engine.All{rabbitmq.ManagementOnly(n.Platform), n.ConsulConfig()}
	if err := errors.Join(isolated.Apply(ctx), consul.ForgetWAN(n.Platform)); err != nil {
		n.Log.Error("the mesh parts of this machine are not held as they should be", "error", err)
	}
}
