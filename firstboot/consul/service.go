package consul

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"
)

// Registration is one instance of a service.
type Registration struct {
	ID      string
	Name    string
	Address string
	Tags    []string
}

// LocalServices returns what is registered at the local agent, sorted by id. An
// empty list is believed only from an agent that lets our token look at itself.
func (c *Client) LocalServices(ctx context.Context) (found []Registration, err error) {
	err = c.call(ctx, callTimeout, func(client *api.Client) error {
		services, err := client.Agent().Services()
		if err != nil {
			return err
		}
		if len(services) == 0 {
			if _, err := client.Agent().Self(); err != nil {
				return fmt.Errorf("the list is empty and the agent does not let us look: %w", err)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(services)) {
			s := services[id]
			found = append(found, Registration{s.ID, s.Service, s.Address, s.Tags})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("consul: list the services of the local agent: %w", err)
	}
	return found, nil
}

// OthersServices returns the instances of one of XiVO's services in another datacenter,
// as XiVO's daemons find them: without a token, which is no one's there. An empty list
// says that there is none, or that nobody may read it without a token (see
// AnonymousServices).
func (c *Client) OthersServices(ctx context.Context, datacenter, name string) (found []Registration, err error) {
	nobody := *c
	nobody.token = ""
	err = nobody.call(ctx, callTimeout, func(client *api.Client) error {
		services, _, err := client.Catalog().Service(name, "", &api.QueryOptions{Datacenter: datacenter})
		for _, s := range services {
			found = append(found, Registration{s.ServiceID, s.ServiceName, cmp.Or(s.ServiceAddress, s.Address), s.ServiceTags})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("consul: list service %s of datacenter %q: %w", name, datacenter, err)
	}
	slices.SortFunc(found, func(a, b Registration) int { return cmp.Compare(a.ID, b.ID) })
	return found, nil
}

// WaitService waits until the local agent has an instance of a service at that
// address. It gives up at ctx's deadline, or after a minute without one.
func (c *Client) WaitService(ctx context.Context, name, address string) error {
	return c.wait(ctx, fmt.Sprintf("wait for %s at %s", name, address), func(ctx context.Context) error {
		services, err := c.LocalServices(ctx)
		if err != nil {
			return err
		}
		var seen []string
		for _, s := range services {
			if s.Name != name {
				continue
			}
			if s.Address == address {
				return nil
			}
			seen = append(seen, s.Address)
		}
		return fmt.Errorf("it is registered at %q", seen)
	})
}
