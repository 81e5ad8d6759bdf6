package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Eval has the broker evaluate an Erlang expression, and returns what it came to.
type Eval func(ctx context.Context, expression string) (string, error)

// LocalEval asks the broker of this machine.
func LocalEval(ctx context.Context, expression string) (string, error) {
	out, err := platform.Run(ctx, "rabbitmqctl", "-q", "eval", expression)
	if err != nil {
		return "", fmt.Errorf("rabbitmq: %w", err)
	}
	return strings.TrimSpace(out), nil
}

// rewrite brings Mnesia's log to the files of its tables, and writes each of these
// anew from what is in memory, beside the old one, whose place it takes. It is what
// Mnesia does by itself when the log of a table has grown.
const rewrite = `dumped = mnesia:dump_log(),
[ok = mnesia_log:ets2dcd(T) || T <- mnesia:system_info(local_tables), T =/= schema, mnesia:table_info(T, storage_type) =:= disc_copies],
rewritten.`

// Rewritten is every table of the broker's being written to another file since the
// resource was made: users, passwords in the URIs of upstreams, and names that were
// changed or deleted stay in the tables' logs until then. The folder has Mnesia's
// folders, one a node.
func Rewritten(folder string, eval Eval) engine.Resource {
	return engine.Replaced(func(ctx context.Context) (map[string]uint64, error) {
		return tableFiles(ctx, folder, eval)
	}, func(same int) string {
		return fmt.Sprintf("tables of RabbitMQ in files that may hold what was before (%d)", same)
	}, func(ctx context.Context) error {
		said, err := eval(ctx, rewrite)
		if err == nil && said != "rewritten" {
			err = fmt.Errorf("rabbitmq: write its tables anew: it says %q", said)
		}
		return err
	})
}

// tableFiles are the tables' files, and the logs of those that have one, each with what
// tells it from another one of its name.
func tableFiles(ctx context.Context, folder string, eval Eval) (map[string]uint64, error) {
	said, err := eval(ctx, "filename:basename(mnesia:system_info(directory)).")
	if err != nil {
		return nil, err
	}
	node := strings.Trim(said, `"`)
	entries, err := os.ReadDir(filepath.Join(folder, node))
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list its tables: %w", err)
	}
	files := map[string]uint64{}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext != ".DCD" && ext != ".DCL" {
			continue
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rabbitmq: list its tables: %w", err)
		}
		files[e.Name()] = st.Sys().(*syscall.Stat_t).Ino
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("rabbitmq: list its tables: there are none in %s", filepath.Join(folder, node))
	}
	return files, nil
}
