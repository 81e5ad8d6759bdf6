// Package rabbitmq wraps XiVO's message broker: its files, its management API
// on loopback, and its bus, over which the canary proves that messages go to
// a peer and come back.
//
// Seen on RabbitMQ 3.10.8; nothing is used that 3.3, the oldest that XiVO had
// with federation and a cluster name, does not know.
package rabbitmq

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const (
	// LocalAMQP is how every daemon of a XiVO reaches its own bus. The broker
	// accepts guest from loopback only.
	LocalAMQP = "amqp://guest:guest@127.0.0.1:5672/"

	localAPI = "http://127.0.0.1:15672"

	vhost    = "/"
	exchange = "xivo" // the bus of XiVO: topic, durable
)

// Client speaks to the management API of the local broker, as guest, who is
// its administrator. Nothing is sent before a method is called.
type Client struct {
	url       string
	transport http.RoundTripper
}

// Option changes what Dial returns.
type Option func(*Client)

// URL is where the management API listens, when that is not
// http://127.0.0.1:15672.
func URL(url string) Option { return func(c *Client) { c.url = url } }

// Dial returns a client of the local broker.
func Dial(options ...Option) *Client {
	c := &Client{
		url: localAPI,
		// No proxy: this never leaves the machine. The deadlines are for a
		// caller whose context has none.
		transport: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			ResponseHeaderTimeout: 30 * time.Second,
			DisableKeepAlives:     true,
			// Answers are bounded in bound.
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// api is rabbit-hole bound to a context, which it does not know by itself.
func (c *Client) api(ctx context.Context) *rabbithole.Client {
	api := &rabbithole.Client{Endpoint: c.url, Username: "guest", Password: "guest"}
	api.SetTransport(bound{ctx, c.transport})
	return api
}

type bound struct {
	ctx  context.Context
	next http.RoundTripper
}

func (b bound) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r.WithContext(b.ctx))
	if err != nil {
		return nil, err
	}
	return limit.Response(resp, limit.Answer), nil
}

// Wait returns when the management API answers. It fails at once on what
// waiting does not mend: guest refused, or a RabbitMQ without cluster names.
// When ctx ends, the error tells what was waited for and what was last seen.
func (c *Client) Wait(ctx context.Context) error {
	begin, last := time.Now(), errors.New("no answer")
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		if errors.Is(err, errHopeless) {
			return fmt.Errorf("rabbitmq: %s: %w", c.url, err)
		}
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("rabbitmq: waited %s for the management API at %s: %w (last seen: %w); is %s running, started after %s was written?",
				time.Since(begin).Round(time.Second), c.url, ctx.Err(), last, platform.Broker, pluginsFile)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

var errHopeless = errors.New("waiting does not help")

func (c *Client) ready(ctx context.Context) error {
	overview, err := c.api(ctx).Overview()
	if err != nil {
		// rabbit-hole has no type for this one.
		if strings.Contains(err.Error(), "401") {
			return fmt.Errorf("guest is refused, which every XiVO daemon needs: restore that account (guest/guest): %w", errHopeless)
		}
		return err
	}
	if !federates(overview.RabbitMQVersion) {
		return fmt.Errorf("RabbitMQ %q is too old to share presences: 3.3 is needed: %w", overview.RabbitMQVersion, errHopeless)
	}
	return nil
}

// federates says whether a RabbitMQ has policies (3.0) and cluster names (3.3).
func federates(version string) bool {
	fields := strings.SplitN(version, ".", 3)
	if len(fields) < 2 {
		return false
	}
	major, err := strconv.Atoi(fields[0])
	minor, err2 := strconv.Atoi(fields[1])
	return err == nil && err2 == nil && (major > 3 || major == 3 && minor >= 3)
}

// sent is the outcome of a call that answers nothing but a status.
func sent(res *http.Response, err error) error {
	if res != nil {
		res.Body.Close()
	}
	return err
}

func notFound(err error) bool {
	var answer rabbithole.ErrorResponse
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}
