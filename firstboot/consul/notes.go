package consul

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"
)

// Notes are short texts that nodes leave for each other in the KV: what is below
// a prefix in a datacenter ("" for the local one), by the rest of the key; none
// if there are none. A datacenter that does not answer within 10 s, or shows us
// not even Consul itself, is an error.
func (c *Client) Notes(ctx context.Context, datacenter, prefix string) (map[string]string, error) {
	notes := map[string]string{}
	err := c.call(ctx, callTimeout, func(client *api.Client) error {
		where := &api.QueryOptions{Datacenter: datacenter}
		pairs, _, err := client.KV().List(prefix, where)
		if err != nil {
			return err
		}
		if len(pairs) == 0 {
			return seesConsul(client, where)
		}
		for _, p := range pairs {
			notes[strings.TrimPrefix(p.Key, prefix)] = string(p.Value)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("consul: read %s of datacenter %q: %w", prefix, datacenter, err)
	}
	return notes, nil
}

// SetNote leaves one.
func (c *Client) SetNote(ctx context.Context, datacenter, key, text string) error {
	err := c.call(ctx, callTimeout, func(client *api.Client) error {
		_, err := client.KV().Put(&api.KVPair{Key: key, Value: []byte(text)}, &api.WriteOptions{Datacenter: datacenter})
		return err
	})
	if err != nil {
		return fmt.Errorf("consul: write %s in datacenter %q: %w", key, datacenter, err)
	}
	return nil
}

// RemoveNotes removes what is below a prefix in the local datacenter.
func (c *Client) RemoveNotes(ctx context.Context, prefix string) error {
	err := c.call(ctx, callTimeout, func(client *api.Client) error {
		_, err := client.KV().DeleteTree(prefix, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("consul: remove %s: %w", prefix, err)
	}
	return nil
}

// seesConsul is an error where our token shows us nothing: what looks empty then
// need not be.
func seesConsul(client *api.Client, where *api.QueryOptions) error {
	servers, _, err := client.Catalog().Service("consul", "", where)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return errors.New("the catalog looks empty: its servers do not know our token")
	}
	return nil
}
