package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Secrets calls add with what this server's Consul has that is its own, and what it
// is called: tokens and keys of its files, the gossip keys, and the node id. A file
// that is missing has none.
func Secrets(p *platform.Platform, add func(name, text string)) error {
	optional := func(name string) ([]byte, error) {
		data, err := files.ReadFile(p.Path(name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	all, err := readConfig(p)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	errs := []error{err}
	for _, f := range all {
		object, err := decodeObject(f.content)
		if err != nil {
			errs = append(errs, fmt.Errorf("consul: %s: %w", f.name, err))
		}
		secretsIn(object, add)
	}
	for _, place := range places {
		data, err := optional(place.name)
		errs = append(errs, err)
		if start, end, err := place.find(data); err == nil {
			add("Consul's master token", string(data[start:end]))
		}
	}
	for _, name := range []string{"local.keyring", "remote.keyring"} {
		data, err := optional(filepath.Join(platform.ConsulDataDir, "serf", name))
		errs = append(errs, err)
		var keys []string
		_ = json.Unmarshal(data, &keys) // what is none has no key
		for _, key := range keys {
			add("a gossip key of Consul's", key)
		}
	}
	id, err := optional(platform.ConsulDataDir + "/node-id")
	add("Consul's node id", string(id))
	return errors.Join(append(errs, err)...)
}

// secretsIn finds tokens and keys by the names of their settings, at any depth.
func secretsIn(value any, add func(name, text string)) {
	switch value := value.(type) {
	case map[string]any:
		for key, inner := range value {
			text, isText := inner.(string)
			switch {
			case !isText:
				secretsIn(inner, add)
			case key == "encrypt":
				add("a gossip key of Consul's", text)
			case key == "acl_master_token":
				add("Consul's master token", text)
			case strings.Contains(key, "token"), slices.Contains([]string{"master", "agent", "agent_master", "default", "replication", "initial_management"}, key):
				add("a token of Consul's", text)
			}
		}
	case []any:
		for _, inner := range value {
			secretsIn(inner, add)
		}
	}
}

// Names returns what stands between a prefix and the next slash in the keys of the
// KV, each once: of the prefix of xivo-auth's tokens, the tokens.
func (c *Client) Names(ctx context.Context, prefix string) ([]string, error) {
	pairs, err := c.list(ctx)
	if err != nil {
		return nil, fmt.Errorf("consul: list the KV below %s: %w", prefix, err)
	}
	var names []string
	for _, pair := range pairs {
		if rest, below := strings.CutPrefix(pair.Key, prefix); below && rest != "" {
			name, _, _ := strings.Cut(rest, "/")
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// ExportWithout is an export that has no key with the prefix. A file that is missing
// has none.
func ExportWithout(file, prefix string) engine.Resource {
	below := func(e entry) bool { return strings.HasPrefix(e.Key, prefix) }
	read := func() (export, error) {
		doc, err := readExport(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return doc, fmt.Errorf("consul: the export %s: %w", file, err)
		}
		return doc, nil
	}
	return engine.New(func(context.Context) ([]string, error) {
		doc, err := read()
		if err != nil {
			return nil, err
		}
		n := 0
		for _, e := range doc.Entries {
			if below(e) {
				n++
			}
		}
		if n == 0 {
			return nil, nil
		}
		return []string{fmt.Sprintf("the export has entries below %s (%d)", prefix, n)}, nil
	}, func(context.Context) error {
		doc, err := read()
		if err != nil {
			return err
		}
		doc.Entries = slices.DeleteFunc(doc.Entries, below)
		return doc.write(file)
	})
}
