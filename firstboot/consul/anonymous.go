package consul

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

const (
	// readServices is what XiVO's package adds from 16.15 on, in the rules of the first
	// ACL system, which all of XiVO's Consuls have.
	readServices = "service \"xivo-\" {\n  policy = \"read\"\n}\n"
	// A Consul from 1.4 on keeps the anonymous token in its second system, where to find
	// a service takes to see its node, too.
	anonymousAccessor = "00000000-0000-0000-0000-000000000002"
	anonymousPolicy   = "xivo-services"
	readServicesToo   = "service_prefix \"xivo-\" {\n  policy = \"read\"\n}\nnode_prefix \"\" {\n  policy = \"read\"\n}\n"
)

// acl is one token of the first system.
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
	return engine.New(func(ctx context.Context) ([]string, error) {
		var open bool
		err := c.call(ctx, callTimeout, func(client *api.Client) (err error) {
			open, err = anonymousReads(client)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("consul: read what the anonymous token may: %w", err)
		}
		if open {
			return nil, nil
		}
		return []string{"without a token, nobody may read where XiVO's services are"}, nil
	}, func(ctx context.Context) error {
		if err := c.call(ctx, callTimeout, letAnonymousRead); err != nil {
			return fmt.Errorf("consul: let everybody read where XiVO's services are: %w", err)
		}
		return nil
	})
}

// first is the anonymous token of the first system; nil where it is in the second.
func first(client *api.Client) (*acl, error) {
	var found []acl
	if _, err := client.Raw().Query("/v1/acl/info/anonymous", &found, nil); err != nil || len(found) == 0 {
		return nil, err
	}
	return &found[0], nil
}

func anonymousReads(client *api.Client) (bool, error) {
	if have, err := first(client); err != nil || have != nil {
		return err == nil && strings.Contains(have.Rules, `service "xivo-"`), err
	}
	have, _, err := client.ACL().TokenRead(anonymousAccessor, nil)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(have.Policies, func(p *api.ACLTokenPolicyLink) bool { return p.Name == anonymousPolicy }), nil
}

func letAnonymousRead(client *api.Client) error {
	have, err := first(client)
	if err != nil {
		return err
	}
	if have != nil {
		have.Rules = strings.TrimSpace(have.Rules) + "\n" + readServices
		_, err := client.Raw().Write("/v1/acl/update", have, nil, nil)
		return err
	}
	policies, _, err := client.ACL().PolicyList(nil)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(policies, func(p *api.ACLPolicyListEntry) bool { return p.Name == anonymousPolicy }) {
		if _, _, err := client.ACL().PolicyCreate(&api.ACLPolicy{Name: anonymousPolicy, Rules: readServicesToo}, nil); err != nil {
			return err
		}
	}
	token, _, err := client.ACL().TokenRead(anonymousAccessor, nil)
	if err != nil {
		return err
	}
	token.Policies = append(token.Policies, &api.ACLTokenPolicyLink{Name: anonymousPolicy})
	_, _, err = client.ACL().TokenUpdate(token, nil)
	return err
}
