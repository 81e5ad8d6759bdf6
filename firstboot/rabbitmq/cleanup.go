package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// downstreamQueue is how RabbitMQ begins the name of the queue that a downstream
// makes on its upstream; the downstream's cluster name follows.
const downstreamQueue = "federation: xivo -> "

// nothingFederated is the resource of Client.NoFederation.
type nothingFederated struct{ client *Client }

// NoFederation takes out what ties this broker to others: every upstream,
// somebody's own included, the mesh's policy, every account of the mesh, and the
// queues that downstreams left here. For the seal, and for a clone that woke
// up with another node's broker. The users of XiVO and the bus stay.
func (c *Client) NoFederation() engine.Resource { return nothingFederated{c} }

// Diff counts what is there: names tell who the others are, and a manifest keeps
// them.
func (n nothingFederated) Diff(ctx context.Context) ([]string, error) {
	found, err := n.ties(ctx)
	kinds := map[string]int{}
	for _, t := range found {
		kinds[t.kind]++
	}
	var diff []string
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		diff = append(diff, fmt.Sprintf("still there: %s (%d)", kind, kinds[kind]))
	}
	return diff, err
}

func (n nothingFederated) Apply(ctx context.Context) error {
	found, err := n.ties(ctx)
	for _, t := range found {
		if e := sent(t.remove()); e != nil {
			err = errors.Join(err, fmt.Errorf("rabbitmq: remove %s: %w", t.name, e))
		}
	}
	return err
}

// tie is one thing of the broker that ties it to others.
type tie struct {
	kind   string
	name   string
	remove func() (*http.Response, error)
}

// ties lists them all. Where one kind cannot be listed, there is no answer.
func (n nothingFederated) ties(ctx context.Context) ([]tie, error) {
	api := n.client.api(ctx)
	var all []tie
	for _, list := range []func(*rabbithole.Client) ([]tie, error){upstreamTies, policyTies, accountTies, queueTies} {
		ties, err := list(api)
		if err != nil {
			return nil, err
		}
		all = append(all, ties...)
	}
	return all, nil
}

func upstreamTies(api *rabbithole.Client) ([]tie, error) {
	upstreams, err := api.ListFederationUpstreams()
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the upstreams: %w", err)
	}
	var ties []tie
	for _, u := range upstreams {
		ties = append(ties, tie{"upstreams", "upstream " + u.Name, func() (*http.Response, error) {
			return api.DeleteFederationUpstream(u.Vhost, u.Name)
		}})
	}
	return ties, nil
}

func policyTies(api *rabbithole.Client) ([]tie, error) {
	policies, err := api.ListPoliciesIn(vhost)
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the policies: %w", err)
	}
	var ties []tie
	for _, p := range policies {
		if p.Name == policyName {
			ties = append(ties, tie{"the policy " + policyName, "policy " + p.Name, func() (*http.Response, error) {
				return api.DeletePolicy(vhost, p.Name)
			}})
		}
	}
	return ties, nil
}

func accountTies(api *rabbithole.Client) ([]tie, error) {
	users, err := api.ListUsers()
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the users: %w", err)
	}
	if len(users) == 0 {
		return nil, errors.New("rabbitmq: list the users: an empty answer, although guest asked")
	}
	var ties []tie
	for _, u := range users {
		if strings.HasPrefix(u.Name, accountPrefix) {
			ties = append(ties, tie{"accounts of a mesh", "user " + u.Name, func() (*http.Response, error) {
				return api.DeleteUser(u.Name)
			}})
		}
	}
	return ties, nil
}

func queueTies(api *rabbithole.Client) ([]tie, error) {
	// Only the columns that are needed: the others have other types in old versions.
	queues, err := api.ListQueuesWithParametersIn(vhost, url.Values{"columns": {"name,consumers"}})
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the queues: %w", err)
	}
	var ties []tie
	for _, q := range queues {
		// One that is consumed belongs to somebody who is there now, and would
		// come back at once.
		if strings.HasPrefix(q.Name, downstreamQueue) && q.Consumers == 0 {
			ties = append(ties, tie{"queues of downstreams", "queue " + q.Name, func() (*http.Response, error) {
				return api.DeleteQueue(vhost, q.Name)
			}})
		}
	}
	return ties, nil
}
