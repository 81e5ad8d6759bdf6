package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// Link is what the broker says of a link to an upstream. "running" does not
// prove that it carries anything: only the canary does.
type Link struct {
	State string // running, starting, error, shutdown
	Error string // why, when it is in error
}

// Links tells the state of the bus's link to each upstream, by its name. An
// upstream without a link is missing: no policy federates the bus, or the
// exchange xivo does not exist yet.
func (c *Client) Links(ctx context.Context) (map[string]Link, error) {
	list, err := c.api(ctx).ListFederationLinksIn(vhost)
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the federation links: %w", err)
	}
	links := map[string]Link{}
	for _, l := range list {
		if text(l["exchange"]) == exchange {
			links[text(l["upstream"])] = Link{State: text(l["status"]), Error: text(l["error"])}
		}
	}
	return links, nil
}

func text(v any) string {
	s, _ := v.(string)
	return s
}

// How long the broker may take to make a link, and how often it is asked.
const (
	linkTime  = 5 * time.Second
	linkAgain = 200 * time.Millisecond
)

// linkedUpstream is the resource of Client.LinkedUpstream.
type linkedUpstream struct {
	upstream
	policy policy
}

// LinkedUpstream is Upstream with its link. A broker whose client goes away in
// the middle stores an upstream, or a policy, and does not act on it; it does not
// act on the same value set again either. Seen on 3.10.8. Where the bus is not
// federated, for want of the exchange or of Policy, no link is expected.
func (c *Client) LinkedUpstream(u Upstream) engine.Resource {
	return linkedUpstream{upstream{c, u}, policy{c}}
}

func (l linkedUpstream) Diff(ctx context.Context) ([]string, error) {
	if diff, err := l.upstream.Diff(ctx); err != nil || diff != nil {
		return diff, err
	}
	if missed, err := l.missed(ctx); err != nil || !missed {
		return nil, err
	}
	return []string{l.String() + " has no link"}, nil
}

// Apply sets the upstream where it differs. Where it is as wanted and has no
// link, it sets the upstream anew, and if that makes none, the policy.
func (l linkedUpstream) Apply(ctx context.Context) error {
	if diff, err := l.upstream.Diff(ctx); err != nil || diff != nil {
		return errors.Join(err, l.upstream.Apply(ctx))
	}
	api := l.client.api(ctx)
	if err := l.removed(api.DeleteFederationUpstream(vhost, l.Name)); err != nil {
		return err
	}
	if err := l.upstream.Apply(ctx); err != nil {
		return err
	}
	if missed, err := l.missed(ctx); err != nil || !missed {
		return err
	}
	if err := l.removed(api.DeletePolicy(vhost, policyName)); err != nil {
		return err
	}
	return l.policy.Apply(ctx)
}

// removed is the outcome of a removal, which is done where nothing was there.
func (l linkedUpstream) removed(res *http.Response, err error) error {
	if err := sent(res, err); err != nil && !notFound(err) {
		return fmt.Errorf("rabbitmq: set %s anew: %w", l, err)
	}
	return nil
}

// missed says whether there should be a link and, after some time, is none.
func (l linkedUpstream) missed(ctx context.Context) (bool, error) {
	if diff, err := l.policy.Diff(ctx); err != nil || diff != nil {
		return false, err
	}
	if _, err := l.client.api(ctx).GetExchange(vhost, exchange); notFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("rabbitmq: read exchange %s: %w", exchange, err)
	}
	linked, err := l.waitLinked(ctx)
	return !linked, err
}

// waitLinked says whether the upstream has a link, and gives the broker some
// time to make it.
func (l linkedUpstream) waitLinked(ctx context.Context) (bool, error) {
	for end := time.Now().Add(linkTime); ; {
		links, err := l.client.Links(ctx)
		if _, ok := links[l.Name]; ok || err != nil || time.Now().After(end) {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("rabbitmq: wait for the link of upstream %s: %w", l.Name, ctx.Err())
		case <-time.After(linkAgain):
		}
	}
}
