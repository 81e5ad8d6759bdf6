package consul

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
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

// JoinedWAN is each of these addresses, all IPs, being a living member of the WAN. Gossip
// tells of others, but two halves that were apart have nobody in common.
func (c *Client) JoinedWAN(addresses []string) engine.Resource { return joinedWAN{c, addresses} }

type joinedWAN struct {
	c         *Client
	addresses []string
}

// missing are those that are not.
func (j joinedWAN) missing(ctx context.Context) ([]string, error) {
	members, err := j.c.WANMembers(ctx)
	if err != nil {
		return nil, err
	}
	alive := map[string]bool{}
	for _, m := range members {
		alive[m.Address] = alive[m.Address] || m.Alive
	}
	return slices.DeleteFunc(slices.Clone(j.addresses), func(a string) bool { return alive[a] }), nil
}

// Diff names those that are not.
func (j joinedWAN) Diff(ctx context.Context) ([]string, error) {
	missing, err := j.missing(ctx)
	if err != nil || len(missing) == 0 {
		return nil, err
	}
	return []string{strings.Join(missing, ", ") + ": not in Consul's WAN"}, nil
}

// Apply joins them at once; the error tells for each that could not be joined why. It
// takes 10 s at most: Consul goes on by itself with an address that is silent for longer.
func (j joinedWAN) Apply(ctx context.Context) error {
	missing, err := j.missing(ctx)
	if err != nil {
		return err
	}
	errs := make([]error, len(missing))
	var wg sync.WaitGroup
	for i, a := range missing {
		wg.Go(func() {
			err := j.c.call(ctx, callTimeout, func(client *api.Client) error {
				return client.Agent().Join(a, true)
			})
			if err != nil {
				errs[i] = fmt.Errorf("consul: join %s in the WAN: %w", a, explained(err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// explained says what to do about an error of memberlist, which knows three
// reasons why two nodes do not understand each other.
func explained(err error) error {
	said := err.Error()
	switch {
	case strings.Contains(said, "No installed keys could decrypt"):
		return errors.New("it has another secret: all nodes of a mesh need the same")
	case strings.Contains(said, "remote state is not encrypted"):
		return errors.New("its gossip is not encrypted, ours is: all nodes of a mesh need the same secret and the same `consul.encrypt`")
	case strings.Contains(said, "encryption is not configured"):
		return errors.New("its gossip is encrypted, ours is not: all nodes of a mesh need the same secret and the same `consul.encrypt`")
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer: %w; is that machine up, and port 8302 open?", context.DeadlineExceeded)
	}
	if _, reason, ok := strings.Cut(said, "Failed to join "); ok {
		reason, _, _ = strings.Cut(reason, "\n")
		err = errors.New(strings.TrimRight(reason, ") "))
	}
	return fmt.Errorf("%w; is Consul up there, and port 8302 open?", err)
}

// wanSnapshot is where serf keeps whom it knows in the WAN, and joins again when
// it starts.
const wanSnapshot = platform.ConsulDataDir + "/serf/remote.snapshot"

// Leave takes the server out of the WAN, which is told: nobody tries to reach it
// any more. The agent ends, and has to be started again, after ForgetWAN. What it
// stores stays.
func (c *Client) Leave(ctx context.Context) error {
	err := c.call(ctx, leaveTimeout, func(client *api.Client) error { return client.Agent().Leave() })
	if err != nil && strings.Contains(err.Error(), "404") {
		// Consul before 0.7.2 does this over a port of its own only.
		_, err = platform.Run(ctx, "consul", "leave")
	}
	if err != nil {
		return fmt.Errorf("consul: leave the WAN: %w", err)
	}
	return nil
}

// ForgetWAN removes what a stopped Consul remembers of the WAN.
func ForgetWAN(p *platform.Platform) error {
	if err := files.Absent(p.Root, wanSnapshot).Apply(context.Background()); err != nil {
		return fmt.Errorf("consul: forget the WAN: %w", err)
	}
	return nil
}
