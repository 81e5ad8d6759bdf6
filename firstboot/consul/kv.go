package consul

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// probeKey is written and read back before the KV is believed: a token that is
// not taken reads an empty KV, without an error.
const probeKey = "xivo-firstboot/probe"

// export is the file of an exported KV.
type export struct {
	Format  int     `json:"format"`
	Entries []entry `json:"entries"`
}

// entry is one key. The value is any bytes; sessions and indexes are the old
// server's own and are left out.
type entry struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
	Flags uint64 `json:"flags"`
}

// Export writes the whole KV to a file, root's alone. It never replaces a file
// that is there: that may be the only copy. Nothing but a probe is written to
// the KV, and it is removed again.
func (c *Client) Export(ctx context.Context, file string) error {
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("consul: export the KV: %s is there already, and may be the only copy: %w", file, errors.Join(fs.ErrExist, err))
	}
	if err := c.probe(ctx); err != nil {
		return fmt.Errorf("consul: export the KV: %w; nothing was removed", err)
	}
	entries, err := c.entries(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(entries, isProbe) {
		return errors.New("consul: export the KV: the list does not hold the key that was just written: the token reads only a part; nothing was removed")
	}
	if _, err := c.api.KV().Delete(probeKey, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
		return c.clean("remove the probe", err)
	}
	raw, err := json.MarshalIndent(export{1, slices.DeleteFunc(entries, isProbe)}, "", " ")
	if err != nil {
		return err
	}
	return platform.WriteFile(file, append(raw, '\n'), 0o600)
}

func isProbe(e entry) bool { return e.Key == probeKey }

func (c *Client) probe(ctx context.Context) error {
	value := []byte(rand.Text())
	w := (&api.WriteOptions{}).WithContext(ctx)
	if _, err := c.api.KV().Put(&api.KVPair{Key: probeKey, Value: value}, w); err != nil {
		return c.clean("write a probe", err)
	}
	q, cancel := options(ctx, "")
	defer cancel()
	q.RequireConsistent = true
	pair, _, err := c.api.KV().Get(probeKey, q)
	if err != nil {
		return c.clean("read the probe", err)
	}
	if pair == nil || !bytes.Equal(pair.Value, value) {
		return errors.New("a probe that was just written cannot be read: the token is not taken")
	}
	return nil
}

func (c *Client) entries(ctx context.Context) ([]entry, error) {
	q, cancel := options(ctx, "")
	defer cancel()
	q.RequireConsistent = true
	pairs, _, err := c.api.KV().List("", q)
	if err != nil {
		return nil, c.clean("read the KV", err)
	}
	var out []entry
	for _, p := range pairs {
		out = append(out, entry{p.Key, p.Value, p.Flags})
	}
	return out, nil
}

// Import is every entry of an exported KV being in the KV, bit for bit, but for
// those below a skipped prefix. Keys that the export does not have are left.
func (c *Client) Import(file string, skip ...string) *KV { return &KV{c, file, skip} }

// KV is what Import returns.
type KV struct {
	client *Client
	file   string
	skip   []string
}

// missing returns the entries that are not there as exported. An export that
// was put aside after its restore misses nothing.
func (k *KV) missing(ctx context.Context) ([]entry, error) {
	raw, err := os.ReadFile(k.file)
	if err != nil {
		return nil, fmt.Errorf("consul: restore the KV: %w", err)
	}
	var want export
	if err := json.Unmarshal(raw, &want); err != nil || want.Format != 1 {
		return nil, fmt.Errorf("consul: restore the KV: %s is damaged or of another release: %w", k.file, err)
	}
	have, err := k.client.entries(ctx)
	if err != nil {
		return nil, err
	}
	there := map[string]entry{}
	for _, e := range have {
		there[e.Key] = e
	}
	return slices.DeleteFunc(want.Entries, func(e entry) bool {
		old, ok := there[e.Key]
		skipped := slices.ContainsFunc(k.skip, func(prefix string) bool { return strings.HasPrefix(e.Key, prefix) })
		return skipped || ok && bytes.Equal(old.Value, e.Value) && old.Flags == e.Flags
	}), nil
}

// Diff says how many entries are missing; keys may be private and are not told.
func (k *KV) Diff(ctx context.Context) ([]string, error) {
	missing, err := k.missing(ctx)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	return []string{fmt.Sprintf("%d entries of the exported KV are not in Consul", len(missing))}, nil
}

// Apply puts them.
func (k *KV) Apply(ctx context.Context) error {
	missing, err := k.missing(ctx)
	if err != nil {
		return err
	}
	for _, e := range missing {
		pair := &api.KVPair{Key: e.Key, Value: e.Value, Flags: e.Flags}
		if _, err := k.client.api.KV().Put(pair, (&api.WriteOptions{}).WithContext(ctx)); err != nil {
			return k.client.clean(fmt.Sprintf("restore the KV from %s: key %q", k.file, e.Key), err)
		}
	}
	return nil
}
