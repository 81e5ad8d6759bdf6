package consul

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// readServices is what XiVO's package adds from 16.15 on.
const readServices = "service \"xivo-\" {\n  policy = \"read\"\n}\n"

// acl is one token of Consul's first ACL system, which XiVO uses in every version.
type acl struct {
	ID    string
	Name  string
	Type  string
	Rules string
}

// AnonymousServices is that whoever has no token may read where XiVO's services are:
// xivo-ctid asks the catalogue of every datacenter without one. XiVO's package sees to
// it from 16.15 on; other rules that are there stay (docs/xivo/consul.md).
func (c *Client) AnonymousServices() engine.Resource {
	read := func(ctx context.Context) (acl, error) {
		var found []acl
		err := c.call(ctx, callTimeout, func(client *api.Client) error {
			_, err := client.Raw().Query("/v1/acl/info/anonymous", &found, nil)
			return err
		})
		if err != nil {
			return acl{}, fmt.Errorf("consul: read the anonymous token's rules: %w", err)
		}
		if len(found) == 0 {
			// It has no rules of this system yet (1.10).
			return acl{ID: "anonymous", Name: "Anonymous Token", Type: "client"}, nil
		}
		return found[0], nil
	}
	diff := func(ctx context.Context) ([]string, error) {
		have, err := read(ctx)
		if err != nil || strings.Contains(have.Rules, `service "xivo-"`) {
			return nil, err
		}
		return []string{"without a token, nobody may read where XiVO's services are"}, nil
	}
	apply := func(ctx context.Context) error {
		have, err := read(ctx)
		if err != nil {
			return err
		}
		have.Rules = strings.TrimSpace(have.Rules) + "\n" + readServices
		err = c.call(ctx, callTimeout, func(client *api.Client) error {
			_, err := client.Raw().Write("/v1/acl/update", have, nil, nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("consul: let everybody read where XiVO's services are: %w", err)
		}
		return nil
	}
	return engine.New(diff, apply)
}
