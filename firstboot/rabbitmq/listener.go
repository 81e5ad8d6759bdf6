package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// managementListener binds the management API to loopback. Without it the API
// listens on every address, with guest/guest behind it.
const managementListener = `{listener, [{port, 15672}, {ip, "127.0.0.1"}]}`

// loopbackListener is the resource of ManagementOnLoopback.
type loopbackListener struct {
	edited
	hiding string // the file that the broker would read instead
}

// ManagementOnLoopback lets the management API listen on 127.0.0.1:15672 and
// nowhere else, in /etc/rabbitmq/rabbitmq.config. Every other setting and
// comment of the file stays as it is; a missing file is made. A file that
// cannot be read with certainty is left alone and reported.
func ManagementOnLoopback(p *platform.Platform) engine.Resource {
	return loopbackListener{
		edited{p.Path(configFile), func(src []byte) ([]byte, []string, error) {
			return setListener(src, managementListener)
		}},
		p.Path(newConfFile),
	}
}

// Diff refuses a broker that does not read the file: from 3.7 on it reads
// rabbitmq.conf instead, where there is one.
func (l loopbackListener) Diff(ctx context.Context) ([]string, error) {
	if _, err := os.Stat(l.hiding); err == nil {
		return nil, fmt.Errorf("rabbitmq: %s hides the settings of %s: move its settings there and remove it, then run again", l.hiding, configFile)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("rabbitmq: %w", err)
	}
	return l.edited.Diff(ctx)
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
