package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Files of the broker. All of them are read when it starts, so what is written
// here counts from its next start on.
const (
	pluginsFile = platform.RabbitConfigDir + "/enabled_plugins"
	configFile  = platform.RabbitConfigDir + "/rabbitmq.config"
	newConfFile = platform.RabbitConfigDir + "/rabbitmq.conf"
)

// The plugins that the mesh needs; XiVO ships none of them enabled. The
// management API is how everything else here is set.
const management = "rabbitmq_management"

var federation = []string{"rabbitmq_federation", "rabbitmq_federation_management"}

// managementListener binds the management API to loopback. Without it the API
// listens on every address, with guest/guest behind it.
const managementListener = `{listener, [{port, 15672}, {ip, "127.0.0.1"}]}`

// Setting is one thing of the broker that is read, compared and set. Diff
// says what differs, without secrets, and changes nothing; Apply makes it so
// and may be repeated.
type Setting struct {
	diff  func(context.Context) ([]string, error)
	apply func(context.Context) error
}

// Diff says what differs from what should be; nil means: as wanted.
func (s *Setting) Diff(ctx context.Context) ([]string, error) { return s.diff(ctx) }

// Apply makes it so.
func (s *Setting) Apply(ctx context.Context) error { return s.apply(ctx) }

// Plugins enables management and federation in /etc/rabbitmq/enabled_plugins,
// beside the plugins that are there. Written while the broker is down, it
// costs no restart.
func Plugins(p *platform.Platform) *Setting {
	return enabled(p, append([]string{management}, federation...), nil)
}

// ManagementOnly enables management, and nothing that federates. A broker that
// wakes up with the upstreams and the cluster name of the node that it was
// copied from would take that node's messages before anything could be removed.
// Client.Federation is what follows.
func ManagementOnly(p *platform.Platform) *Setting {
	return enabled(p, []string{management}, func(plugin string) bool {
		// Each of that name needs the first one, and so starts it.
		return strings.HasPrefix(plugin, federation[0])
	})
}

// enabled is the list of plugins with the wanted ones, and without those that
// are not; the others stay.
func enabled(p *platform.Platform, wanted []string, unwanted func(plugin string) bool) *Setting {
	return edited(p.Path(pluginsFile), func(src []byte) ([]byte, []string, error) {
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
	})
}

// ManagementOnLoopback lets the management API listen on 127.0.0.1:15672 and
// nowhere else, in /etc/rabbitmq/rabbitmq.config. Every other setting and
// comment of the file stays as it is; a missing file is made. A file that
// cannot be read with certainty is left alone and reported.
func ManagementOnLoopback(p *platform.Platform) *Setting {
	s := edited(p.Path(configFile), func(src []byte) ([]byte, []string, error) {
		return setListener(src, managementListener)
	})
	diff := s.diff
	s.diff = func(ctx context.Context) ([]string, error) {
		// From 3.7 on the broker reads rabbitmq.conf instead, where there is one.
		if _, err := os.Stat(p.Path(newConfFile)); err == nil {
			return nil, fmt.Errorf("rabbitmq: %s hides the settings of %s: move its settings there and remove it, then run again",
				p.Path(newConfFile), configFile)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("rabbitmq: %w", err)
		}
		return diff(ctx)
	}
	return s
}

// setListener puts the listener into the section rabbitmq_management.
func setListener(src []byte, listener string) (out []byte, diff []string, err error) {
	diff = []string{"the management API is not bound to 127.0.0.1:15672"}
	section := "{rabbitmq_management, [" + listener + "]}"

	list, err := readList(src)
	if err != nil {
		return nil, nil, err
	}
	if list == nil {
		return append(slices.Clip(src), "[\n  "+section+"\n].\n"...), diff, nil
	}
	found, err := list.entry(src, "rabbitmq_management")
	if err != nil {
		return nil, nil, err
	}
	if found == nil {
		return list.add(src, "\n  ", section), diff, nil
	}
	settings := found.items[1]
	if settings.kind != '[' {
		return nil, nil, at(src, settings.start, "the settings of rabbitmq_management are not a list")
	}
	old, err := settings.entry(src, "listener")
	if err != nil {
		return nil, nil, err
	}
	if old == nil {
		return settings.add(src, " ", listener), diff, nil
	}
	wanted := (&reader{src: []byte(listener)})
	t, err := wanted.term()
	if err != nil {
		return nil, nil, err
	}
	if old.text(src) == t.text(wanted.src) {
		return src, nil, nil
	}
	return old.replace(src, listener), diff, nil
}

// edited is a file that edit brings into its wanted form.
func edited(name string, edit func([]byte) (out []byte, diff []string, err error)) *Setting {
	read := func() ([]byte, []string, error) {
		src, err := files.ReadFile(name) // in a folder of the broker's user
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("rabbitmq: %w", err)
		}
		out, diff, err := edit(src)
		if err != nil {
			return nil, nil, fmt.Errorf("rabbitmq: %s: %w: correct the file, or move it away, and run again; it was not changed", name, err)
		}
		for i := range diff {
			diff[i] = name + ": " + diff[i]
		}
		return out, diff, nil
	}
	return &Setting{
		diff: func(context.Context) ([]string, error) {
			_, diff, err := read()
			return diff, err
		},
		apply: func(context.Context) error {
			out, diff, err := read()
			if err != nil || len(diff) == 0 {
				return err
			}
			attr, err := files.Kept(name, 0o644)
			if err == nil {
				err = files.WriteFile(name, out, attr)
			}
			if err != nil {
				return fmt.Errorf("rabbitmq: %w", err)
			}
			return nil
		},
	}
}
