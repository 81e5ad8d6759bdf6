package rabbitmq

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
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

// Upstream is a peer whose messages this node wants.
type Upstream struct {
	Name     string // of the parameter; also of the link
	Host     string // or IPv4, or with a port: host:5673
	Account  string // on the peer's broker
	Password secret.Secret
	MaxHops  int // how many links a message may have passed; 1 in a full mesh
	Links    int // how many upstreams this node has in all
}

// String names the upstream and where it leads, without its credentials.
func (u Upstream) String() string { return fmt.Sprintf("upstream %s (%s)", u.Name, u.Host) }

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

// upstream is the resource of Client.Upstream.
type upstream struct {
	client *Client
	Upstream
}

// Upstream lets this node receive what the peer's bus carries. It works while
// the peer is unreachable: the broker keeps trying.
func (c *Client) Upstream(u Upstream) engine.Resource { return upstream{c, u} }

func (u upstream) Diff(ctx context.Context) ([]string, error) {
	found, err := u.client.api(ctx).GetFederationUpstream(vhost, u.Name)
	if notFound(err) {
		return []string{u.String() + " does not exist"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: read upstream %s: %w", u.Name, err)
	}
	return prefixed(u.String()+": ", differences(found.Definition, u.definition())), nil
}

func (u upstream) Apply(ctx context.Context) error {
	if err := sent(u.client.api(ctx).PutFederationUpstream(vhost, u.Name, u.definition())); err != nil {
		return fmt.Errorf("rabbitmq: set %s: %w", u, withoutPassword(err, u.Password))
	}
	return nil
}

// differences of two upstreams. Numbers and where they lead are told; texts may be
// anything that somebody wrote.
func differences(found, wanted rabbithole.FederationDefinition) []string {
	var diff []string
	if !slices.Equal(found.Uri, wanted.Uri) {
		if was, is := redacted(found.Uri), redacted(wanted.Uri); slices.Equal(was, is) {
			diff = append(diff, "the uri's credentials differ, or its parameters")
		} else {
			diff = append(diff, fmt.Sprintf("uri is %s, wanted %s", strings.Join(was, " "), strings.Join(is, " ")))
		}
	}
	for _, d := range []struct {
		name          string
		found, wanted int
	}{
		{"max-hops", found.MaxHops, wanted.MaxHops},
		{"reconnect-delay", found.ReconnectDelay, wanted.ReconnectDelay},
		{"expires", found.Expires, wanted.Expires},
		{"message-ttl", int(found.MessageTTL), int(wanted.MessageTTL)},
		{"prefetch-count", found.PrefetchCount, wanted.PrefetchCount},
	} {
		if d.found != d.wanted {
			diff = append(diff, fmt.Sprintf("%s is %d, wanted %d", d.name, d.found, d.wanted))
		}
	}
	for _, d := range []struct {
		name    string
		differs bool
	}{
		{"ack-mode", found.AckMode != wanted.AckMode},
		{"trust-user-id", found.TrustUserId != wanted.TrustUserId},
		{"exchange", found.Exchange != wanted.Exchange},
		{"queue", found.Queue != wanted.Queue},
	} {
		if d.differs {
			diff = append(diff, d.name+" differs")
		}
	}
	return diff
}

// redacted are the uris without their credentials.
func redacted(uris []string) []string {
	out := make([]string, len(uris))
	for i, uri := range uris {
		out[i] = secret.RedactURI(uri)
	}
	return out
}

// noUpstream is the resource of Client.NoUpstream.
type noUpstream struct {
	client *Client
	name   string
}

// NoUpstream removes one upstream, and with it its link.
func (c *Client) NoUpstream(name string) engine.Resource { return noUpstream{c, name} }

func (u noUpstream) Diff(ctx context.Context) ([]string, error) {
	_, err := u.client.api(ctx).GetFederationUpstream(vhost, u.name)
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: read upstream %s: %w", u.name, err)
	}
	return []string{fmt.Sprintf("upstream %s is still there", u.name)}, nil
}

func (u noUpstream) Apply(ctx context.Context) error {
	if err := sent(u.client.api(ctx).DeleteFederationUpstream(vhost, u.name)); err != nil {
		return fmt.Errorf("rabbitmq: remove upstream %s: %w", u.name, err)
	}
	return nil
}

// FoundUpstream is an upstream that the broker has, of the mesh or somebody's own.
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
