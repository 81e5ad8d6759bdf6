package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// Registration is one instance of a service. The order of tags means nothing.
type Registration struct {
	ID      string
	Name    string
	Address string
	Tags    []string
}

func (r Registration) equal(o Registration) bool {
	return r.ID == o.ID && r.Name == o.Name && r.Address == o.Address &&
		slices.Equal(slices.Sorted(slices.Values(r.Tags)), slices.Sorted(slices.Values(o.Tags)))
}

// Registered is a service, without checks, at the local agent and in the catalog
// of its datacenter, which is what other nodes see.
func (c *Client) Registered(r Registration) engine.Resource { return registered{c, r} }

type registered struct {
	c    *Client
	want Registration
}

// Diff says where the service is missing or different.
func (s registered) Diff(ctx context.Context) ([]string, error) {
	if s.want.ID == "" || s.want.Name == "" || s.want.Address == "" {
		return nil, fmt.Errorf("consul: register %q: id, name and address are all needed", s.want.ID)
	}
	local, err := s.c.LocalServices(ctx)
	if err != nil {
		return nil, err
	}
	if d := s.differs("agent", local); d != nil {
		return d, nil
	}
	catalog, err := s.c.Services(ctx, "", s.want.Name)
	if err != nil {
		return nil, err
	}
	return s.differs("catalog", catalog), nil
}

// differs says how the registration in a list differs from the wanted one.
func (s registered) differs(where string, have []Registration) []string {
	i := slices.IndexFunc(have, func(r Registration) bool { return r.ID == s.want.ID })
	if i < 0 {
		return []string{fmt.Sprintf("service %s: not registered (%s)", s.want.ID, where)}
	}
	if have[i].equal(s.want) {
		return nil
	}
	return []string{fmt.Sprintf("service %s: another name, address or list of tags (%s)", s.want.ID, where)}
}

// Apply registers it and waits until the catalog shows it, at most 10 s.
func (s registered) Apply(ctx context.Context) error {
	err := s.c.call(ctx, callTimeout, func(client *api.Client) error {
		return client.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID:      s.want.ID,
			Name:    s.want.Name,
			Address: s.want.Address,
			Tags:    s.want.Tags,
		})
	})
	if err != nil {
		return fmt.Errorf("consul: register service %s: %w", s.want.ID, err)
	}

	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return s.c.wait(ctx, "wait for the registration of "+s.want.ID, func(ctx context.Context) error {
		diff, err := s.Diff(ctx)
		if err == nil && diff != nil {
			err = errors.New(diff[0])
		}
		return err
	})
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

// Services returns the instances of a service in the catalog of a datacenter, ""
// for the local one, sorted by id; none if there are none. A datacenter that
// does not answer within 10 s, or shows us not even Consul itself, is an error.
// An instance without an address of its own gets its node's, as Consul says.
func (c *Client) Services(ctx context.Context, datacenter, name string) (found []Registration, err error) {
	err = c.call(ctx, callTimeout, func(client *api.Client) error {
		where := &api.QueryOptions{Datacenter: datacenter}
		services, _, err := client.Catalog().Service(name, "", where)
		if err != nil {
			return err
		}
		if len(services) == 0 {
			return seesConsul(client, where)
		}
		for _, s := range services {
			found = append(found, Registration{s.ServiceID, s.ServiceName, cmp.Or(s.ServiceAddress, s.Address), s.ServiceTags})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("consul: list service %s of datacenter %q: %w", name, datacenter, err)
	}
	slices.SortFunc(found, func(a, b Registration) int { return cmp.Compare(a.ID, b.ID) })
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
