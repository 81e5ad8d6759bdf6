package converge

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// errDown is what Consul and the broker say where a test has none.
var errDown = errors.New("this server is down")

// withoutConsulAndBroker makes both fail at once.
func withoutConsulAndBroker(n *node.Node) {
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return nil, errDown }
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errDown }
}

// peer is the other node of these tests.
func peer(version string) mesh.Member {
	return mesh.Member{
		UUID: uuid.MustParse(nodetest.PeerUUID), Host: "xivo-a", Name: "xivo-a-607796fc",
		Address: "10.0.0.1", Version: version, Seen: time.Now().UTC(),
	}
}

// databasePass looks and decides on a node that knows these members, and of whose
// servers only the database answers.
func databasePass(t *testing.T, n *node.Node, m *Memory, members ...mesh.Member) *Pass {
	t.Helper()
	withoutConsulAndBroker(n)
	if err := n.WriteState(node.MembersFile, members); err != nil {
		t.Fatal(err)
	}
	p, err := newPass(t.Context(), n, m, stepTime)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// runs applies a step of a pass, and fails if it is not then as wanted.
func runs(t *testing.T, p *Pass, name string) engine.Event {
	t.Helper()
	report, err := p.runner().Run(t.Context(), nodetest.Only(t, Phase, name))
	if err != nil {
		t.Fatal(err)
	}
	return report[0]
}
