package rabbitmq

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	policyName    = "xivo-mesh"
	accountPrefix = "xivo-mesh-"

	// leftQueue is how RabbitMQ names the queue that a downstream makes on its
	// upstream; the downstream's cluster name follows.
	leftQueue = "federation: xivo -> "
)

// Of a federation upstream. The queue that this node makes on the peer holds
// what the peer says while this node is away: without bounds it fills the
// peer's disk when this node does not come back.
const (
	// MessageTTL is how long a message waits there. An older presence is wrong
	// more often than right.
	MessageTTL = 5 * time.Minute
	// QueueExpires is how long the queue itself outlives its last use: a reboot
	// or an upgrade passes, a removed node does not stay.
	QueueExpires = 30 * time.Minute
	// heartbeat of the link in seconds. XiVO's brokers ask for none, and a peer
	// that lost its power would look connected for hours.
	heartbeat = 10
)

// How long a broker that answers may take to load the plugins that its file
// lists, before something is done about it and after.
const (
	loading = 20 * time.Second
	loaded  = time.Minute
)

// EnableTime is what Federation needs at most: on an emulated machine its tool
// takes half a minute, and the broker minutes to start.
const EnableTime = 10 * time.Minute

// Federation is the federation plugin, enabled and running. Apply enables it in
// the running broker, with RabbitMQ's own tool: there is no API. A broker that
// only reads the list at its start (before 3.4) needs the restart.
func (c *Client) Federation(p *platform.Platform, restart func(context.Context) error) *Setting {
	listed := Plugins(p)
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			if diff, err := listed.Diff(ctx); err != nil || diff != nil {
				return diff, err
			}
			if c.federating(ctx, loading) != nil {
				return []string{"the federation plugin does not run"}, nil
			}
			return nil, nil
		},
		apply: func(ctx context.Context) error {
			// First, so that a restart does what the tool could not.
			if err := listed.Apply(ctx); err != nil {
				return err
			}
			_, err := platform.Run(ctx, "rabbitmq-plugins", append([]string{"enable"}, federation...)...)
			if err == nil && c.federating(ctx, loaded) == nil {
				return nil
			}
			if ctx.Err() != nil {
				return fmt.Errorf("rabbitmq: enable the federation plugin: %w", ctx.Err())
			}
			if err := restart(ctx); err != nil {
				return fmt.Errorf("rabbitmq: restart for the federation plugin: %w", err)
			}
			if err := c.Wait(ctx); err != nil {
				return err
			}
			return c.federating(ctx, loaded)
		},
	}
}

// federating waits for the federation plugin to be loaded.
func (c *Client) federating(ctx context.Context, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := c.api(ctx).ListFederationLinksIn(vhost)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rabbitmq: the federation plugin is not loaded: %w; see the broker's log", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// ClusterName gives the broker its name in the mesh. It must be unique:
// downstreams of one name share one queue on their upstream, and each gets a
// part of its messages. To be set before the first upstream.
func (c *Client) ClusterName(name string) *Setting {
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			found, err := c.api(ctx).GetClusterName()
			if err != nil {
				return nil, fmt.Errorf("rabbitmq: read the cluster name: %w", err)
			}
			if found.Name == name {
				return nil, nil
			}
			return []string{fmt.Sprintf("cluster name is %q, not %q", found.Name, name)}, nil
		},
		apply: func(ctx context.Context) error {
			if err := sent(c.api(ctx).SetClusterName(rabbithole.ClusterName{Name: name})); err != nil {
				return fmt.Errorf("rabbitmq: set the cluster name to %q: %w", name, err)
			}
			return nil
		},
	}
}

// leastRights are all that a downstream needs on its upstream: its own queue
// and internal exchange, and reading from the bus. Measured on 3.10.8.
var leastRights = rabbithole.Permissions{
	Configure: "^" + leftQueue,
	Write:     "^" + leftQueue,
	Read:      "^(" + exchange + "$|" + leftQueue + ")",
}

// FederationUser is the account that peers log in with. It has no tag, so it
// can neither use the management API nor change anything but its own queues.
func (c *Client) FederationUser(account string, password secret.Secret) *Setting {
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			user, err := c.api(ctx).GetUser(account)
			if notFound(err) {
				return []string{fmt.Sprintf("user %s does not exist", account)}, nil
			}
			if err != nil {
				return nil, fmt.Errorf("rabbitmq: read user %s: %w", account, err)
			}
			var diff []string
			if !opens(user, password) {
				diff = append(diff, fmt.Sprintf("user %s has another password", account))
			}
			if tags := strings.Join(user.Tags, ","); tags != "" {
				diff = append(diff, fmt.Sprintf("user %s has tags %q, wanted none", account, tags))
			}

			rights, err := c.api(ctx).ListPermissionsOf(account)
			if err != nil {
				return nil, fmt.Errorf("rabbitmq: read the rights of user %s: %w", account, err)
			}
			var here rabbithole.Permissions
			for _, r := range rights {
				if r.Vhost == vhost {
					here = rabbithole.Permissions{Configure: r.Configure, Write: r.Write, Read: r.Read}
				}
			}
			if here != leastRights {
				diff = append(diff, fmt.Sprintf("user %s has rights %q, wanted %q", account, here, leastRights))
			}
			return diff, nil
		},
		apply: func(ctx context.Context) error {
			settings := rabbithole.UserSettings{Name: account, Password: password.Reveal()}
			if err := sent(c.api(ctx).PutUser(account, settings)); err != nil {
				return fmt.Errorf("rabbitmq: set user %s: %w", account, scrub(err, password))
			}
			if err := sent(c.api(ctx).UpdatePermissionsIn(vhost, account, leastRights)); err != nil {
				return fmt.Errorf("rabbitmq: set the rights of user %s: %w", account, err)
			}
			return nil
		},
	}
}

// opens says whether a password is the user's: RabbitMQ tells the hash, four
// bytes of salt before it. Brokers before 3.6 hash with MD5 and do not say so.
func opens(user *rabbithole.UserInfo, password secret.Secret) bool {
	var h hash.Hash
	switch user.HashingAlgorithm {
	case rabbithole.HashingAlgorithmSHA256:
		h = sha256.New()
	case rabbithole.HashingAlgorithmSHA512:
		h = sha512.New()
	case rabbithole.HashingAlgorithmMD5, "":
		h = md5.New()
	default:
		return false
	}
	const salt = 4
	stored, err := base64.StdEncoding.DecodeString(user.PasswordHash)
	if err != nil || len(stored) != salt+h.Size() {
		return false
	}
	h.Write(stored[:salt])
	h.Write([]byte(password.Reveal()))
	return subtle.ConstantTimeCompare(h.Sum(nil), stored[salt:]) == 1
}

var wantedPolicy = rabbithole.Policy{
	Vhost: vhost,
	Name:  policyName,
	// Anchored: an open pattern also takes exchanges that only contain the word.
	Pattern:    "^" + exchange + "$",
	ApplyTo:    "exchanges",
	Priority:   1,
	Definition: rabbithole.PolicyDefinition{"federation-upstream-set": "all"},
}

// Policy federates the exchange xivo, and nothing else, with all upstreams.
// Only one policy counts for an exchange: where somebody's own one is as
// strong and federates in another way, Diff says so and Apply fails, because
// removing it is not for us to decide.
func (c *Client) Policy() *Setting {
	// rivals are policies that win over ours, or may.
	read := func(ctx context.Context) (diff, rivals []string, err error) {
		policies, err := c.api(ctx).ListPoliciesIn(vhost)
		if err != nil {
			return nil, nil, fmt.Errorf("rabbitmq: read the policies: %w", err)
		}
		diff = []string{fmt.Sprintf("policy %s does not exist", policyName)}
		for _, p := range policies {
			switch {
			case p.Name == policyName:
				diff = nil
				if !samePolicy(p, wantedPolicy) {
					diff = []string{fmt.Sprintf("policy %s is %+v, wanted %+v", policyName, p, wantedPolicy)}
				}
			case p.Priority >= wantedPolicy.Priority && p.ApplyTo != "queues" && takesBus(p.Pattern) &&
				p.Definition["federation-upstream-set"] != "all":
				rivals = append(rivals, fmt.Sprintf("policy %s (priority %d) keeps exchange %s from being federated", p.Name, p.Priority, exchange))
			}
		}
		return diff, rivals, nil
	}
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			diff, rivals, err := read(ctx)
			return append(diff, rivals...), err
		},
		apply: func(ctx context.Context) error {
			if err := sent(c.api(ctx).PutPolicy(vhost, policyName, wantedPolicy)); err != nil {
				return fmt.Errorf("rabbitmq: set policy %s: %w", policyName, err)
			}
			_, rivals, err := read(ctx)
			if err == nil && len(rivals) > 0 {
				err = fmt.Errorf("rabbitmq: %s: lower its priority below %d or remove it, then run again", strings.Join(rivals, "; "), wantedPolicy.Priority)
			}
			return err
		},
	}
}

func samePolicy(a, b rabbithole.Policy) bool {
	return a.Pattern == b.Pattern && a.ApplyTo == b.ApplyTo && a.Priority == b.Priority && maps.Equal(a.Definition, b.Definition)
}

// takesBus says whether a policy's pattern matches the bus. A pattern that is
// beyond Go's regular expressions is taken for a match: better asked than lost.
func takesBus(pattern string) bool {
	re, err := regexp.Compile(pattern)
	return err != nil || re.MatchString(exchange)
}

// Upstream is a peer whose messages this node wants.
type Upstream struct {
	Name     string // of the parameter; also of the link
	Host     string // or IPv4, or with a port: host:5673
	Account  string // on the peer's broker
	Password secret.Secret
	MaxHops  int // how many links a message may have passed; 1 in a full mesh
	Links    int // how many upstreams this node has in all
}

// definition is the upstream as RabbitMQ keeps it, times in milliseconds and
// the delay in seconds. A supervisor of RabbitMQ gives up on more than 1200
// reconnects a minute of all links together, so the delay grows with them.
func (u Upstream) definition() rabbithole.FederationDefinition {
	return rabbithole.FederationDefinition{
		Uri:            rabbithole.URISet{fmt.Sprintf("amqp://%s:%s@%s?heartbeat=%d", escape(u.Account), escape(u.Password.Reveal()), u.Host, heartbeat)},
		MaxHops:        max(1, u.MaxHops),
		ReconnectDelay: max(5, (u.Links+19)/20),
		Expires:        int(QueueExpires.Milliseconds()),
		MessageTTL:     int32(MessageTTL.Milliseconds()),
		// A message leaves the peer's queue when it is safe here. Cheaper modes
		// lose what is on its way when a link breaks.
		AckMode: "on-confirm",
	}
}

// escape encodes everything but unreserved characters, as every amqp URI
// parser of RabbitMQ decodes it.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// Upstream lets this node receive what the peer's bus carries. It works while
// the peer is unreachable: the broker keeps trying.
func (c *Client) Upstream(u Upstream) *Setting {
	wanted := u.definition()
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			found, err := c.api(ctx).GetFederationUpstream(vhost, u.Name)
			if notFound(err) {
				return []string{fmt.Sprintf("upstream %s (%s) does not exist", u.Name, u.Host)}, nil
			}
			if err != nil {
				return nil, fmt.Errorf("rabbitmq: read upstream %s: %w", u.Name, err)
			}
			return prefixed(fmt.Sprintf("upstream %s (%s): ", u.Name, u.Host), differences(found.Definition, wanted)), nil
		},
		apply: func(ctx context.Context) error {
			if err := sent(c.api(ctx).PutFederationUpstream(vhost, u.Name, wanted)); err != nil {
				return fmt.Errorf("rabbitmq: set upstream %s (%s): %w", u.Name, u.Host, scrub(err, u.Password))
			}
			return nil
		},
	}
}

// linkTime is how long the broker may take to make a link.
const linkTime = 5 * time.Second

// LinkedUpstream is Upstream with its link. A broker whose client goes away in
// the middle stores an upstream, or a policy, and does not act on it; it does not
// act on the same value set again either. Seen on 3.10.8. Where the bus is not
// federated, for want of the exchange or of our policy, a link is not missed.
func (c *Client) LinkedUpstream(u Upstream) *Setting {
	s, policy := c.Upstream(u), c.Policy()
	linked := func(ctx context.Context) (bool, error) {
		for end := time.Now().Add(linkTime); ; {
			links, err := c.Links(ctx)
			if _, ok := links[u.Name]; ok || err != nil || time.Now().After(end) {
				return ok, err
			}
			select {
			case <-ctx.Done():
				return false, fmt.Errorf("rabbitmq: wait for the link of upstream %s: %w", u.Name, ctx.Err())
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	missed := func(ctx context.Context) (bool, error) {
		if diff, err := policy.Diff(ctx); err != nil || diff != nil {
			return false, err
		}
		if _, err := c.api(ctx).GetExchange(vhost, exchange); notFound(err) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("rabbitmq: read exchange %s: %w", exchange, err)
		}
		ok, err := linked(ctx)
		return !ok, err
	}
	// anew takes out what there is, and puts it back.
	anew := func(ctx context.Context, remove func() (*http.Response, error), s *Setting) error {
		if err := sent(remove()); err != nil && !notFound(err) {
			return fmt.Errorf("rabbitmq: set upstream %s (%s) anew: %w", u.Name, u.Host, err)
		}
		return s.Apply(ctx)
	}
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			if diff, err := s.Diff(ctx); err != nil || diff != nil {
				return diff, err
			}
			if missed, err := missed(ctx); err != nil || !missed {
				return nil, err
			}
			return []string{fmt.Sprintf("upstream %s (%s) has no link", u.Name, u.Host)}, nil
		},
		apply: func(ctx context.Context) error {
			if diff, err := s.Diff(ctx); err != nil || diff != nil {
				return errors.Join(err, s.Apply(ctx))
			}
			err := anew(ctx, func() (*http.Response, error) { return c.api(ctx).DeleteFederationUpstream(vhost, u.Name) }, s)
			if err != nil {
				return err
			}
			if missed, err := missed(ctx); err != nil || !missed {
				return err
			}
			return anew(ctx, func() (*http.Response, error) { return c.api(ctx).DeletePolicy(vhost, policyName) }, policy)
		},
	}
}

// differences of two upstreams, without their credentials.
func differences(found, wanted rabbithole.FederationDefinition) []string {
	var diff []string
	if !slices.Equal(found.Uri, wanted.Uri) {
		if was, is := redacted(found.Uri), redacted(wanted.Uri); slices.Equal(was, is) {
			diff = append(diff, "the uri's credentials differ")
		} else {
			diff = append(diff, fmt.Sprintf("uri is %s, wanted %s", strings.Join(was, " "), strings.Join(is, " ")))
		}
	}
	for _, d := range []struct {
		name          string
		found, wanted any
	}{
		{"max-hops", found.MaxHops, wanted.MaxHops},
		{"reconnect-delay", found.ReconnectDelay, wanted.ReconnectDelay},
		{"expires", found.Expires, wanted.Expires},
		{"message-ttl", found.MessageTTL, wanted.MessageTTL},
		{"ack-mode", found.AckMode, wanted.AckMode},
		{"trust-user-id", found.TrustUserId, wanted.TrustUserId},
		{"prefetch-count", found.PrefetchCount, wanted.PrefetchCount},
		{"exchange", found.Exchange, wanted.Exchange},
		{"queue", found.Queue, wanted.Queue},
	} {
		if d.found != d.wanted {
			diff = append(diff, fmt.Sprintf("%s is %v, wanted %v", d.name, d.found, d.wanted))
		}
	}
	return diff
}

// redacted are the uris without their credentials. They are cut, not parsed:
// one that an operator wrote need not be well-formed.
func redacted(uris []string) []string {
	out := make([]string, len(uris))
	for i, uri := range uris {
		scheme, rest, ok := strings.Cut(uri, "://")
		if !ok {
			scheme, rest = "", uri
		} else {
			scheme += "://"
		}
		out[i] = scheme + rest[strings.LastIndexByte(rest, '@')+1:]
	}
	return out
}

// NoUpstream removes one upstream, and with it its link.
func (c *Client) NoUpstream(name string) *Setting {
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			_, err := c.api(ctx).GetFederationUpstream(vhost, name)
			if notFound(err) {
				return nil, nil
			}
			if err != nil {
				return nil, fmt.Errorf("rabbitmq: read upstream %s: %w", name, err)
			}
			return []string{fmt.Sprintf("upstream %s is still there", name)}, nil
		},
		apply: func(ctx context.Context) error {
			if err := sent(c.api(ctx).DeleteFederationUpstream(vhost, name)); err != nil {
				return fmt.Errorf("rabbitmq: remove upstream %s: %w", name, err)
			}
			return nil
		},
	}
}

// FoundUpstream is an upstream that the broker has, ours or somebody's own.
type FoundUpstream struct {
	Name  string
	Hosts []string // of its uris, without ports; usually one
}

// Upstreams lists the federation upstreams of the broker.
func (c *Client) Upstreams(ctx context.Context) ([]FoundUpstream, error) {
	list, err := c.api(ctx).ListFederationUpstreamsIn(vhost)
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: list the upstreams: %w", err)
	}
	found := make([]FoundUpstream, len(list))
	for i, u := range list {
		found[i] = FoundUpstream{Name: u.Name}
		for _, uri := range redacted(u.Definition.Uri) {
			_, host, _ := strings.Cut(uri, "://")
			if end := strings.IndexAny(host, ":/?"); end >= 0 {
				host = host[:end]
			}
			found[i].Hosts = append(found[i].Hosts, host)
		}
	}
	return found, nil
}

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

// NothingFederated takes out what ties this broker to others: every upstream,
// somebody's own included, our policy, every account of the mesh, and the
// queues that downstreams left here. For the seal, and for a clone that woke
// up with another node's broker. The users of XiVO and the bus stay.
func (c *Client) NothingFederated() *Setting {
	type trace struct {
		what   string
		remove func(*rabbithole.Client) (*http.Response, error)
	}
	traces := func(ctx context.Context) ([]trace, error) {
		api := c.api(ctx)
		var found []trace
		upstreams, err := api.ListFederationUpstreams()
		if err != nil {
			return nil, fmt.Errorf("rabbitmq: list the upstreams: %w", err)
		}
		for _, u := range upstreams {
			found = append(found, trace{"upstream " + u.Name, func(api *rabbithole.Client) (*http.Response, error) {
				return api.DeleteFederationUpstream(u.Vhost, u.Name)
			}})
		}
		policies, err := api.ListPoliciesIn(vhost)
		if err != nil {
			return nil, fmt.Errorf("rabbitmq: list the policies: %w", err)
		}
		for _, p := range policies {
			if p.Name == policyName {
				found = append(found, trace{"policy " + p.Name, func(api *rabbithole.Client) (*http.Response, error) {
					return api.DeletePolicy(vhost, p.Name)
				}})
			}
		}
		users, err := api.ListUsers()
		if err != nil {
			return nil, fmt.Errorf("rabbitmq: list the users: %w", err)
		}
		if len(users) == 0 {
			return nil, errors.New("rabbitmq: list the users: an empty answer, although guest asked")
		}
		for _, u := range users {
			if strings.HasPrefix(u.Name, accountPrefix) {
				found = append(found, trace{"user " + u.Name, func(api *rabbithole.Client) (*http.Response, error) {
					return api.DeleteUser(u.Name)
				}})
			}
		}
		// Only what is needed: the rest has other types in old versions.
		queues, err := api.ListQueuesWithParametersIn(vhost, url.Values{"columns": {"name,consumers"}})
		if err != nil {
			return nil, fmt.Errorf("rabbitmq: list the queues: %w", err)
		}
		for _, q := range queues {
			// One that is consumed belongs to somebody who is there now, and would
			// come back at once.
			if strings.HasPrefix(q.Name, leftQueue) && q.Consumers == 0 {
				found = append(found, trace{"queue " + q.Name, func(api *rabbithole.Client) (*http.Response, error) {
					return api.DeleteQueue(vhost, q.Name)
				}})
			}
		}
		return found, nil
	}
	return &Setting{
		diff: func(ctx context.Context) ([]string, error) {
			found, err := traces(ctx)
			var diff []string
			for _, t := range found {
				diff = append(diff, t.what+" is still there")
			}
			return diff, err
		},
		apply: func(ctx context.Context) error {
			found, err := traces(ctx)
			for _, t := range found {
				if e := sent(t.remove(c.api(ctx))); e != nil {
					err = errors.Join(err, fmt.Errorf("rabbitmq: remove %s: %w", t.what, e))
				}
			}
			return err
		},
	}
}

func prefixed(prefix string, lines []string) []string {
	for i := range lines {
		lines[i] = prefix + lines[i]
	}
	return lines
}

// scrub makes one line of what RabbitMQ said to a definition that it refused,
// and takes the secret out: it repeats the definition, and a page of Erlang.
func scrub(err error, s secret.Secret) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	for _, form := range []string{s.Reveal(), strings.Join(strings.Fields(s.Reveal()), " "), escape(s.Reveal())} {
		if form != "" {
			text = strings.ReplaceAll(text, form, s.String())
		}
	}
	const enough = 300
	if len(text) > enough {
		text = strings.ToValidUTF8(text[:enough], "") + " …"
	}
	return errors.New(text)
}
