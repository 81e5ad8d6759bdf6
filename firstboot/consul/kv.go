package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// exportFormat is the version of the export's file.
const exportFormat = 1

// export is the file: all of the KV but locks, which end with their sessions.
type export struct {
	Format  int     `json:"format"`
	Entries []entry `json:"entries"`
}

type entry struct {
	Key   string `json:"key"`
	Value []byte `json:"value"` // base64 in the file
	Flags uint64 `json:"flags"`
}

// Export writes all of the KV into a new file, mode 0600: keys, values and flags
// as they are. It appears complete or not at all. An existing file is never
// written over (errors.Is(err, fs.ErrExist)). A key that we write and must find
// in the answer proves that the answer is one: with a wrong token an empty KV
// looks the same (docs/xivo/consul.md, The KV).
func (c *Client) Export(ctx context.Context, file string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("consul: export KV to %s: %w", file, err)
		}
	}()
	if _, err := os.Lstat(file); err == nil {
		return fmt.Errorf("%w: an export that may not have been restored yet is never written over", fs.ErrExist)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}

	doc, err := c.readAll(ctx)
	if err != nil {
		return err
	}
	return doc.write(file)
}

// readAll reads all of the KV, and proves that it is all.
func (c *Client) readAll(ctx context.Context) (export, error) {
	doc := export{Format: exportFormat, Entries: []entry{}}
	proof, err := c.probe(ctx)
	if err != nil {
		return doc, err
	}
	pairs, err := c.list(ctx)
	if err := errors.Join(err, c.removeProbe(ctx)); err != nil {
		return doc, err
	}
	proved := false
	for _, pair := range pairs {
		if pair.Key == probeKey {
			proved = string(pair.Value) == proof
			continue
		}
		if err := c.checkKey(ctx, pair.Key); err != nil {
			return doc, err
		}
		doc.Entries = append(doc.Entries, entry{pair.Key, pair.Value, pair.Flags})
	}
	if !proved {
		return doc, fmt.Errorf("the answer lacks key %q, which was just written: not everything may be read with this token", probeKey)
	}
	return doc, nil
}

// CompleteExport adds to an export the entries of a later one whose keys it does
// not have. What it has stays as it is. The file is replaced at once, or not at
// all.
func CompleteExport(file, later string) error {
	have, err := readExport(file)
	if err != nil {
		return fmt.Errorf("consul: complete the export %s: %w", file, err)
	}
	more, err := readExport(later)
	if err != nil {
		return fmt.Errorf("consul: complete the export %s with %s: %w", file, later, err)
	}
	known := map[string]bool{}
	for _, e := range have.Entries {
		known[e.Key] = true
	}
	for _, e := range more.Entries {
		if !known[e.Key] {
			have.Entries = append(have.Entries, e)
		}
	}
	return have.write(file)
}

func (doc export) write(file string) error {
	data, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		return err
	}
	return files.WriteFile(file, append(data, '\n'), files.Private())
}

func readExport(file string) (doc export, err error) {
	data, err := limit.ReadFile(file, limit.KV)
	if err != nil {
		return doc, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&doc); err != nil {
		return doc, fmt.Errorf("not a whole export (near byte %d)", d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return doc, errors.New("text after the export")
	}
	if doc.Format != exportFormat || doc.Entries == nil {
		return doc, fmt.Errorf("not an export of format %d", exportFormat)
	}
	return doc, nil
}

func (c *Client) list(ctx context.Context) (pairs api.KVPairs, err error) {
	err = c.callFor(ctx, callTimeout, limit.KV, func(client *api.Client) error {
		pairs, _, err = client.KV().List("", consistent)
		return err
	})
	return pairs, err
}

// checkKey asks for a key by its name if that may have been altered on the way:
// a key need not be UTF-8, but the JSON that lists it is.
func (c *Client) checkKey(ctx context.Context, key string) error {
	if !strings.ContainsRune(key, utf8.RuneError) {
		return nil
	}
	return c.call(ctx, callTimeout, func(client *api.Client) error {
		pair, _, err := client.KV().Get(key, consistent)
		if err == nil && pair == nil {
			err = errors.New("it is not valid UTF-8 and Consul cannot list it; rename or delete it")
		}
		if err != nil {
			return fmt.Errorf("key %q: %w", public(key), err)
		}
		return nil
	})
}

// Import is the KV holding every entry of an export bit for bit, but those whose
// key begins with one of skip. Other entries of the KV are left alone. The file
// is only read.
func (c *Client) Import(file string, skip ...string) engine.Resource {
	return imported{c, file, skip}
}

type imported struct {
	c    *Client
	file string
	skip []string
}

// Diff counts what is missing or different. Keys are not told: some hold tokens.
func (r imported) Diff(ctx context.Context) ([]string, error) {
	todo, total, err := r.missing(ctx)
	if err != nil || len(todo) == 0 {
		return nil, err
	}
	return []string{fmt.Sprintf("Consul's KV: %d of the %d entries of %s are missing or differ", len(todo), total, r.file)}, nil
}

// Apply writes those entries. After an error it may simply be run again.
func (r imported) Apply(ctx context.Context) error {
	todo, _, err := r.missing(ctx)
	if err != nil {
		return err
	}
	for _, e := range todo {
		if err := r.c.put(ctx, e); err != nil {
			return r.fail(fmt.Errorf("key %q: %w; the export is intact, run again", public(e.Key), err))
		}
	}
	return nil
}

func (r imported) fail(err error) error {
	return fmt.Errorf("consul: restore KV from %s: %w", r.file, err)
}

// missing returns the wanted entries that the KV does not hold as they are in the
// export, and how many are wanted.
func (r imported) missing(ctx context.Context) (todo []entry, total int, err error) {
	want, err := r.read()
	if err != nil {
		return nil, 0, r.fail(err)
	}
	pairs, err := r.c.list(ctx)
	if err != nil {
		return nil, 0, r.fail(err)
	}
	have := make(map[string]*api.KVPair, len(pairs))
	for _, pair := range pairs {
		have[pair.Key] = pair
	}
	for _, e := range want {
		pair := have[e.Key]
		if pair == nil || pair.Flags != e.Flags || !bytes.Equal(pair.Value, e.Value) {
			todo = append(todo, e)
		}
	}
	return todo, len(want), nil
}

// read returns the entries that are wanted.
func (r imported) read() ([]entry, error) {
	doc, err := readExport(r.file)
	if err != nil {
		return nil, err
	}
	var wanted []entry
	for _, e := range doc.Entries {
		if !r.skipped(e.Key) {
			wanted = append(wanted, e)
		}
	}
	return wanted, nil
}

func (r imported) skipped(key string) bool {
	return slices.ContainsFunc(r.skip, func(prefix string) bool { return strings.HasPrefix(key, prefix) })
}

func (c *Client) put(ctx context.Context, e entry) error {
	return c.call(ctx, callTimeout, func(client *api.Client) error {
		if inPath(e.Key) {
			_, err := client.KV().Put(&api.KVPair{Key: e.Key, Value: e.Value, Flags: e.Flags}, nil)
			return err
		}
		// In a transaction, which Consul has from 0.7 on, the key is not part of
		// a path. Only a transaction can have made such a key.
		ok, resp, _, err := client.KV().Txn(api.KVTxnOps{
			{Verb: api.KVSet, Key: e.Key, Value: e.Value, Flags: e.Flags},
		}, nil)
		if err == nil && !ok {
			err = errors.New("refused")
			if len(resp.Errors) > 0 {
				err = fmt.Errorf("refused: %s", resp.Errors[0].What)
			}
		}
		return err
	})
}

// inPath says whether a key arrives unchanged as part of a URL's path, which
// Consul's server cleans, and refuses when it is not printable.
func inPath(key string) bool {
	if key == "" || path.Clean("/"+key) != "/"+strings.TrimSuffix(key, "/") {
		return false
	}
	return !strings.ContainsFunc(key, func(r rune) bool { return !unicode.IsPrint(r) })
}

// public is as much of a key as may be told: what follows the second slash can
// be a token.
func public(key string) string {
	parts := strings.SplitN(key, "/", 3)
	if len(parts) == 3 {
		parts[2] = "…"
	}
	return strings.Join(parts, "/")
}
