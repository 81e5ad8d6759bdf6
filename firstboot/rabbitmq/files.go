package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

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

// edited is a file that edit brings into its wanted form. It says what differs,
// and returns its input where nothing does.
type edited struct {
	name string
	edit func([]byte) (out []byte, diff []string, err error)
}

func (e edited) read() (out []byte, diff []string, err error) {
	src, err := files.ReadFile(e.name) // in a folder of the broker's user
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("rabbitmq: %w", err)
	}
	out, diff, err = e.edit(src)
	if err != nil {
		return nil, nil, fmt.Errorf("rabbitmq: %s: %w: correct the file, or move it away, and run again; it was not changed", e.name, err)
	}
	return out, prefixed(e.name+": ", diff), nil
}

func (e edited) Diff(context.Context) ([]string, error) {
	_, diff, err := e.read()
	return diff, err
}

func (e edited) Apply(context.Context) error {
	out, diff, err := e.read()
	if err != nil || len(diff) == 0 {
		return err
	}
	attr, err := files.Kept(e.name, 0o644)
	if err == nil {
		err = files.WriteFile(e.name, out, attr)
	}
	if err != nil {
		return fmt.Errorf("rabbitmq: %w", err)
	}
	return nil
}

// prefixed puts a prefix before each line, in place.
func prefixed(prefix string, lines []string) []string {
	for i := range lines {
		lines[i] = prefix + lines[i]
	}
	return lines
}
