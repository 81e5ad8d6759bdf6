package rabbitmq

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// The plugins that the mesh needs; XiVO ships none of them enabled. The
// management API is how everything else here is set.
const management = "rabbitmq_management"

var federation = []string{"rabbitmq_federation", "rabbitmq_federation_management"}

// How long a broker that answers may take to load the plugins that its file
// lists: before they are enabled by hand, and after.
const (
	loadTime   = 20 * time.Second
	enableTime = time.Minute
)

// EnableTime is what Federation needs at most: on an emulated machine its tool
// takes half a minute, and the broker minutes to start.
const EnableTime = 10 * time.Minute

// Plugins enables management and federation in /etc/rabbitmq/enabled_plugins,
// beside the plugins that are there. Written while the broker is down, it
// costs no restart.
func Plugins(p *platform.Platform) engine.Resource {
	return enabled(p, append([]string{management}, federation...), nil)
}

// ManagementOnly enables management, and nothing that federates. A broker that
// wakes up with the upstreams and the cluster name of the node that it was
// copied from would take that node's messages before anything could be removed.
// Client.Federation is what follows.
func ManagementOnly(p *platform.Platform) engine.Resource {
	return enabled(p, []string{management}, func(plugin string) bool {
		// Each of that name needs the first one, and so starts it.
		return strings.HasPrefix(plugin, federation[0])
	})
}

// enabled is the list of plugins with the wanted ones, and without those that
// are not; the others stay.
func enabled(p *platform.Platform, wanted []string, unwanted func(plugin string) bool) engine.Resource {
	return edited{p.Path(pluginsFile), func(src []byte) ([]byte, []string, error) {
		list, err := readList(src)
		if err != nil {
			return nil, nil, err
		}
		if list == nil {
			src = append(slices.Clip(src), "[].\n"...)
			if list, err = readList(src); err != nil {
				return nil, nil, err
			}
		}
		var diff []string
		for i := len(list.items) - 1; unwanted != nil && i >= 0; i-- {
			plugin := strings.Trim(list.items[i].text(src), "'")
			if !unwanted(plugin) {
				continue
			}
			diff = append(diff, plugin+" is enabled")
			src = list.remove(src, i)
			if list, err = readList(src); err != nil {
				return nil, nil, err
			}
		}
		for _, plugin := range wanted {
			if slices.ContainsFunc(list.items, func(t term) bool { return t.isAtom(src, plugin) }) {
				continue
			}
			diff = append(diff, plugin+" is not enabled")
			src = list.add(src, "", plugin)
			if list, err = readList(src); err != nil {
				return nil, nil, err
			}
		}
		return src, diff, nil
	}}
}

// federationPlugin is the resource of Client.Federation.
type federationPlugin struct {
	client  *Client
	listed  engine.Resource
	restart func(context.Context) error
}

// Federation is the federation plugin, enabled and running. Apply enables it in
// the running broker, with RabbitMQ's own tool: there is no API. A broker that
// only reads the list at its start (before 3.4) needs the restart.
func (c *Client) Federation(p *platform.Platform, restart func(context.Context) error) engine.Resource {
	return federationPlugin{c, Plugins(p), restart}
}

func (f federationPlugin) Diff(ctx context.Context) ([]string, error) {
	if diff, err := f.listed.Diff(ctx); err != nil || diff != nil {
		return diff, err
	}
	if f.client.federating(ctx, loadTime) != nil {
		return []string{"the federation plugin does not run"}, nil
	}
	return nil, nil
}

func (f federationPlugin) Apply(ctx context.Context) error {
	// First, so that a restart does what the tool could not.
	if err := f.listed.Apply(ctx); err != nil {
		return err
	}
	// The tool goes on when the program that started it is killed. Of two that enable
	// a plugin at once, one fails, and the plugin runs all the same.
	patience := enableTime
	if _, err := platform.Run(ctx, "rabbitmq-plugins", append([]string{"enable"}, federation...)...); err != nil {
		patience = loadTime
	}
	if f.client.federating(ctx, patience) == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("rabbitmq: enable the federation plugin: %w", ctx.Err())
	}
	if err := f.restart(ctx); err != nil {
		return fmt.Errorf("rabbitmq: restart for the federation plugin: %w", err)
	}
	if err := f.client.Wait(ctx); err != nil {
		return err
	}
	return f.client.federating(ctx, enableTime)
}

// federating waits for the federation plugin to be loaded.
func (c *Client) federating(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := c.api(ctx).ListFederationLinksIn(vhost)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rabbitmq: the federation plugin is not loaded: %w; see the broker's log", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}
