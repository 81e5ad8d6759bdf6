// Package consul wraps Consul: the files that XiVO's Consul reads and keeps, and
// the HTTPS API of the local agent, from 0.5.2 on.
//
// An API that answers nothing where there must be something has not answered:
// Consul sends empty lists and "not found" to those who may not read.
package consul

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	// callTimeout is for one request to the local agent, which may have to ask
	// another datacenter for it.
	callTimeout = 10 * time.Second
	// leaveTimeout is longer: a server tells everybody, and waits for them.
	leaveTimeout = 30 * time.Second
	// waitTimeout ends waits whose caller set no deadline.
	waitTimeout  = time.Minute
	pollInterval = 200 * time.Millisecond
)

// probeKey is written to see whether the KV can be written and read. It is
// never part of an export.
const probeKey = "xivo-firstboot/probe"

// Client speaks to the local agent. Every call has a deadline of its own, 10 s
// unless told otherwise, and the caller's if that is nearer. It may be used by
// several goroutines.
type Client struct {
	address   string
	token     secret.Secret
	transport http.RoundTripper
}

// Dial prepares a client for the agent that Consul's configuration files
// describe: its HTTPS port on loopback, with their ACL master token. Nothing is
// sent yet. Only the certificate of /usr/share/xivo-certs/server.crt is
// accepted, byte for byte: XiVO's own names no host and has no authority. Dial
// again after the files changed.
func Dial(p *platform.Platform) (*Client, error) {
	config, err := mergedConfig(p)
	if err != nil {
		return nil, err
	}
	token, _ := config["acl_master_token"].(string)
	if token == "" {
		return nil, fmt.Errorf("consul: no acl_master_token in %s", p.Path(platform.ConsulConfigDir))
	}
	address, err := apiAddress(config)
	if err != nil {
		return nil, fmt.Errorf("consul: %s: %w", p.Path(platform.ConsulConfigDir), err)
	}
	return newClient(address, secret.Secret(token), p.Path(platform.CertificateFile)), nil
}

func newClient(address string, token secret.Secret, certificate string) *Client {
	return &Client{
		address: address,
		token:   token,
		// No proxy: it is this machine.
		transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: callTimeout}).DialContext,
			TLSHandshakeTimeout: callTimeout,
			TLSClientConfig:     pinned(certificate),
			IdleConnTimeout:     time.Minute,
			// Answers are bounded in bound.
			MaxResponseHeaderBytes: 64 << 10,
		},
	}
}

func apiAddress(config map[string]any) (string, error) {
	ports, _ := config["ports"].(map[string]any)
	port := fmt.Sprint(ports["https"])
	if ports["https"] == nil || port == "-1" {
		return "", errors.New("no HTTPS port (ports.https)")
	}
	host, _ := config["client_addr"].(string)
	if addresses, _ := config["addresses"].(map[string]any); addresses["https"] != nil {
		host, _ = addresses["https"].(string)
	}
	if host == "" || host == "0.0.0.0" {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

// pinned accepts the one certificate of a file, whatever it says about itself.
// The file is read at each connection, since a certificate may be renewed.
func pinned(file string) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does more
		VerifyConnection: func(state tls.ConnectionState) error {
			data, err := limit.ReadFile(file, limit.File)
			if err != nil {
				return err
			}
			block, _ := pem.Decode(data)
			if block == nil || block.Type != "CERTIFICATE" {
				return fmt.Errorf("%s holds no certificate", file)
			}
			if !bytes.Equal(state.PeerCertificates[0].Raw, block.Bytes) {
				return fmt.Errorf("the server does not show the certificate of %s; was Consul restarted after it changed?", file)
			}
			return nil
		},
	}
}

// bound is the transport of one call. It ends with the call's context, which
// half of the API package's methods do not take, and adds the token to the URL,
// the only place where Consul 0.5 looks for it. That URL is seen by nobody but
// the server: errors name the one without it.
type bound struct {
	ctx   context.Context
	next  http.RoundTripper
	token secret.Secret
	// most is how many bytes an answer may have.
	most int64
}

func (b bound) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(b.ctx)
	query := r.URL.Query()
	if b.token != "" {
		query.Set("token", b.token.Reveal())
	}
	r.URL.RawQuery = query.Encode()

	resp, err := b.next.RoundTrip(r)
	if err == nil && resp.StatusCode >= 300 && resp.StatusCode < 400 {
		// Following it would send the token along, and its body repeats the URL.
		resp.Body.Close()
		return nil, fmt.Errorf("unexpected redirection (%d)", resp.StatusCode)
	}
	if err != nil {
		return nil, err
	}
	return limit.Response(resp, b.most), nil
}

// call runs f with a client of the API that stops at the time or with ctx, and gets
// answers of limit.Answer bytes at most.
func (c *Client) call(ctx context.Context, time time.Duration, f func(*api.Client) error) error {
	return c.callFor(ctx, time, limit.Answer, f)
}

// callFor is call with answers of so many bytes.
func (c *Client) callFor(ctx context.Context, time time.Duration, most int64, f func(*api.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, time)
	defer cancel()
	// Every field that an environment variable could set is set here.
	client, err := api.NewClient(&api.Config{
		Address:    c.address,
		Scheme:     "https",
		Token:      c.token.Reveal(),
		HttpClient: &http.Client{Transport: bound{ctx, c.transport, c.token, most}},
	})
	if err != nil {
		return err
	}
	return f(client)
}

// WaitLeader waits until the server has a leader, which answers consistent reads
// and knows our token: after an election the token is unknown for a moment. It
// gives up at ctx's deadline, or after a minute without one, and says what the
// last answer was.
func (c *Client) WaitLeader(ctx context.Context) error {
	return c.wait(ctx, "wait for a leader", func(ctx context.Context) error {
		return c.call(ctx, callTimeout, func(client *api.Client) error {
			leader, err := client.Status().Leader()
			if err != nil {
				return err
			}
			if leader == "" {
				return errors.New("no leader")
			}
			nodes, _, err := client.Catalog().Nodes(consistent)
			if err == nil && len(nodes) == 0 {
				err = errors.New("a leader with an empty catalog")
			}
			return err
		})
	})
}

var consistent = &api.QueryOptions{RequireConsistent: true}

// wait repeats try until it succeeds or ctx ends.
func (c *Client) wait(ctx context.Context, what string, try func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, waitTimeout)
		defer cancel()
	}
	start := time.Now()
	last := errors.New("none")
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		// An attempt that the deadline cut short tells less than the one before.
		if ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("consul: %s at https://%s: %w (waited %s; last answer: %w)",
				what, c.address, ctx.Err(), time.Since(start).Round(time.Second), last)
		case <-time.After(pollInterval):
		}
	}
}

// probe writes a value of its own into the KV, reads it back and returns it.
func (c *Client) probe(ctx context.Context) (string, error) {
	value := rand.Text()
	err := c.call(ctx, callTimeout, func(client *api.Client) error {
		if _, err := client.KV().Put(&api.KVPair{Key: probeKey, Value: []byte(value)}, nil); err != nil {
			return fmt.Errorf("write key %q: %w", probeKey, err)
		}
		pair, _, err := client.KV().Get(probeKey, consistent)
		if err != nil {
			return fmt.Errorf("read key %q back: %w", probeKey, err)
		}
		if pair == nil || string(pair.Value) != value {
			return fmt.Errorf("key %q was written and does not come back: the token may not read", probeKey)
		}
		return nil
	})
	return value, err
}

func (c *Client) removeProbe(ctx context.Context) error {
	return c.call(ctx, callTimeout, func(client *api.Client) error {
		if _, err := client.KV().Delete(probeKey, nil); err != nil {
			return fmt.Errorf("consul: remove key %q: %w", probeKey, err)
		}
		return nil
	})
}
