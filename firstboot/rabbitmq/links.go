package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Link is what the broker says of a link to an upstream. "running" does not
// prove that it carries anything: only the canary does.
type Link struct {
	State string // running, starting, error, shutdown
	Error string // why, when it is in error
}

// startTime is many times what a link takes to connect or to give up.
const startTime = 5 * time.Minute

// Links tells the state of the bus's link to each upstream, by its name. An
// upstream without a link is missing: no policy federates the bus, or the
// exchange xivo does not exist yet. So is one whose link has been starting for
// minutes: of a link that ended before it began to connect, the broker tells that
// for ever.
func (c *Client) Links(ctx context.Context) (map[string]Link, error) {
	list, err := c.listed(ctx)
	if err != nil {
		return nil, err
	}
	links := map[string]Link{}
	for name, l := range list {
		link := Link{State: text(l["status"]), Error: text(l["error"])}
		since, err := time.ParseInLocation(time.DateTime, text(l["timestamp"]), time.Local)
		if link.State == "starting" && err == nil && time.Since(since) > startTime {
			continue
		}
		links[name] = link
	}
	return links, nil
}

// listed is all that the broker tells of the bus's links, by the names of their
// upstreams.
func (c *Client) listed(ctx context.Context) (map[string]map[string]any, error) {
	list, err := c.api(ctx).ListFederationLinksIn(vhost)
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the federation links: %w", err)
	}
	links := map[string]map[string]any{}
	for _, l := range list {
		if text(l["exchange"]) == exchange {
			links[text(l["upstream"])] = l
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
// act on the same value set again either. Cut off at another moment, it also
// answers each change of an upstream with status 500, and stores it all the same.
// Seen on 3.10.8. Where the bus is not federated, for want of the exchange or of
// Policy, no link is expected.
//
// Apply may disable the federation plugin for some seconds. A program that is
// killed meanwhile leaves it to Federation to enable it.
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
// link, it does what may give it one, until it has: what disturbs least comes
// first, and what fails in between does not keep it from the next.
func (l linkedUpstream) Apply(ctx context.Context) error {
	if diff, err := l.upstream.Diff(ctx); err != nil || diff != nil {
		return errors.Join(err, l.upstream.Apply(ctx))
	}
	var errs []error
	for _, anew := range []func(context.Context) error{l.upstreamAnew, l.policyAnew, l.pluginAnew} {
		err := anew(ctx)
		linked, listErr := l.wait(ctx, func() (bool, error) { return l.listed(ctx) })
		if err == nil && linked {
			return nil
		}
		errs = append(errs, err)
		if listErr != nil { // the broker does not answer
			return errors.Join(append(errs, listErr)...)
		}
	}
	return errors.Join(errs...)
}

// upstreamAnew makes the broker's supervisor of the bus's links make this one.
func (l linkedUpstream) upstreamAnew(ctx context.Context) error {
	return errors.Join(
		l.removed(l.client.api(ctx).DeleteFederationUpstream(vhost, l.Name)),
		l.unlisted(ctx),
		l.upstream.Apply(ctx),
	)
}

// policyAnew makes that supervisor, after the one that there may be was removed.
func (l linkedUpstream) policyAnew(ctx context.Context) error {
	return errors.Join(
		l.removed(l.client.api(ctx).DeletePolicy(vhost, policyName)),
		l.unlisted(ctx),
		l.policy.Apply(ctx),
	)
}

// unlisted says whether the broker forgot the link with what it came from: one that
// is listed afterwards is then a new one.
func (l linkedUpstream) unlisted(ctx context.Context) error {
	listed, err := l.listed(ctx)
	if listed {
		return fmt.Errorf("rabbitmq: the broker lists a link to %s, which was removed", l)
	}
	return err
}

// pluginAnew ends all that federates, in the running broker, and begins it again
// from what is stored. All links are down for some seconds.
func (l linkedUpstream) pluginAnew(ctx context.Context) error {
	var errs []error
	for _, verb := range []string{"disable", "enable"} {
		if _, err := platform.Run(ctx, "rabbitmq-plugins", append([]string{verb}, federation...)...); err != nil {
			errs = append(errs, fmt.Errorf("rabbitmq: the federation plugin anew: %w", err))
		}
	}
	return errors.Join(append(errs, l.client.federating(ctx, enableTime))...)
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
	linked, err := l.wait(ctx, func() (bool, error) {
		links, err := l.client.Links(ctx)
		_, ok := links[l.Name]
		return ok, err
	})
	return !linked, err
}

// listed says whether the broker lists the link, whatever it says of it.
func (l linkedUpstream) listed(ctx context.Context) (bool, error) {
	links, err := l.client.listed(ctx)
	_, ok := links[l.Name]
	return ok, err
}

// wait gives the broker some time to make the link.
func (l linkedUpstream) wait(ctx context.Context, made func() (bool, error)) (bool, error) {
	for end := time.Now().Add(linkTime); ; {
		if ok, err := made(); ok || err != nil || time.Now().After(end) {
			return ok, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("rabbitmq: wait for the link of upstream %s: %w", l.Name, ctx.Err())
		case <-time.After(linkAgain):
		}
	}
}
