package consul

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/hashicorp/consul/api"
)

// alive is serf's status of a member that answers.
const alive = 1

// Member is a server that gossips in the WAN, this one included.
type Member struct {
	Name       string // <node>.<datacenter>
	Datacenter string
	Address    string // IP
	// Alive is false for failed and for left, which both say no more than that
	// it is not reachable: old Consuls leave at each reboot.
	Alive bool
}

// WANMembers returns the members of the WAN as the local agent sees them. This
// node is one of them, so an empty list is an error.
func (c *Client) WANMembers(ctx context.Context) (members []Member, err error) {
	err = c.call(ctx, callTimeout, func(client *api.Client) error {
		list, err := client.Agent().Members(true)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return errors.New("an empty list, without even this node: the agent does not know our token")
		}
		for _, m := range list {
			members = append(members, Member{m.Name, m.Tags["dc"], m.Addr, m.Status == alive})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("consul: list the WAN members: %w", err)
	}
	return members, nil
}

// Join is the resource of addresses that are in the WAN.
type Join struct {
	c         *Client
	addresses []string
}

// JoinedWAN is every address, an IP or a host name, being a living member of the
// WAN. This node's own address always is.
func (c *Client) JoinedWAN(addresses []string) *Join { return &Join{c, addresses} }

// Diff names the addresses that are not.
func (j *Join) Diff(ctx context.Context) ([]string, error) {
	missing, err := j.missing(ctx)
	var diff []string
	for _, a := range missing {
		diff = append(diff, fmt.Sprintf("%s: not a living member of Consul's WAN", a))
	}
	return diff, err
}

// Apply joins each of them, and tells for each that failed why. Those that could
// be joined stay so. A silent address takes 30 s.
func (j *Join) Apply(ctx context.Context) error {
	missing, err := j.missing(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range missing {
		err := j.c.call(ctx, joinTimeout, func(client *api.Client) error {
			return client.Agent().Join(a, true)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("consul: join %s in the WAN: %w; is port 8302 open there, and the secret the same?", a, err))
		}
	}
	return errors.Join(errs...)
}

func (j *Join) missing(ctx context.Context) ([]string, error) {
	members, err := j.c.WANMembers(ctx)
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, address := range j.addresses {
		ips := resolve(ctx, address)
		if !slices.ContainsFunc(members, func(m Member) bool {
			return m.Alive && slices.Contains(ips, m.Address)
		}) {
			missing = append(missing, address)
		}
	}
	return missing, nil
}

// resolve returns the IPs of an address. A name that is unknown has none, and
// Consul will say so when it is asked to join it.
func resolve(ctx context.Context, address string) []string {
	if _, err := netip.ParseAddr(address); err == nil {
		return []string{address}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ips, _ := net.DefaultResolver.LookupHost(ctx, address)
	return ips
}
