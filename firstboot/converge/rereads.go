package converge

import (
	"context"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// restartedSince is a daemon that was started after what it reads at start last changed.
// The fingerprint of what it read is at mark.
func restartedSince[T any](n *node.Node, daemon platform.Role, what string, wanted []T, read func(*Marks) *string) engine.Resource {
	now, service := fingerprint(wanted), n.Platform.Service(daemon)
	return engine.New(func(ctx context.Context) ([]string, error) {
		// A daemon that a person stopped reads them when he starts it.
		active, err := n.Platform.Init.Active(ctx, service)
		if err != nil || !active {
			return nil, err
		}
		m := readMarks(n)
		if last := *read(&m); last == now || last == "" && len(wanted) == 0 {
			return nil, nil
		}
		return []string{service + " runs with " + what + " from before the last change"}, nil
	}, func(ctx context.Context) error {
		// Where it cannot be marked, each pass would restart it.
		if err := mark(n, func(*Marks) {}); err != nil {
			return err
		}
		if err := n.Platform.Init.Restart(ctx, service); err != nil {
			return err
		}
		return mark(n, func(m *Marks) { *read(m) = now })
	})
}
