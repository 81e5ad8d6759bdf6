package firstboot

import (
	"context"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// waitEvery is how often a node that waits is looked at again.
const waitEvery = 5 * time.Second

// Watch converges until ctx ends, and hands each result to told. A node that waits,
// for the wizard or for a person, is looked at again and again until it does not: to
// end instead would be to be started again, without end.
func (m Machine) Watch(ctx context.Context, told func(converge.Result)) error {
	n, err := m.Open()
	if err != nil {
		return err
	}
	defer func() { n.Close() }()
	again := time.NewTicker(waitEvery)
	defer again.Stop()
	last := ""
	for why := converge.Waits(ctx, n); why != ""; why = converge.Waits(ctx, n) {
		if why != last {
			n.Log.Info("converge: waiting", "why", why)
			last = why
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		}
		// It is another one once somebody made it a node.
		var now *node.Node
		if now, err = m.Open(); err != nil {
			return err
		}
		n.Close()
		n = now
	}
	return converge.Watch(ctx, n, told)
}
