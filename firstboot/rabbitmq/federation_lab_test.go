package rabbitmq

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	account  = "xivo-mesh-0a1b2c"
	password = secret.Secret("p@ss/w%rd:with every+thing")
)

// become brings a setting about and checks that it is then as wanted.
func become(t *testing.T, s engine.Resource) {
	t.Helper()
	diff, err := s.Diff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(diff) == 0 {
		t.Fatal("nothing differed before it was applied")
	}
	noSecret(t, diff)
	for range 2 {
		if err := s.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		wanted(t, s)
	}
}

func wanted(t *testing.T, s engine.Resource) {
	t.Helper()
	if diff, err := s.Diff(t.Context()); err != nil || diff != nil {
		t.Fatalf("still differs: %q, %v", diff, err)
	}
}

func noSecret(t *testing.T, diff []string) {
	t.Helper()
	if all := strings.Join(diff, "\n"); strings.Contains(all, "p@ss") || strings.Contains(all, "p%40ss") {
		t.Fatalf("a secret is told: %s", all)
	}
}

// A first boot that is killed while it asks the broker for something leaves what
// is stored and not acted on.
func TestAFederationThatWasCutOffIsMended(t *testing.T) {
	peer := startBroker(t, "127.0.0.5", plugins...)
	become(t, peer.ready(t).FederationUser(account, password))
	b := startBroker(t, "127.0.0.6", plugins...)
	c := b.ready(t)
	t.Setenv("PATH", b.Tools(t)+":"+os.Getenv("PATH"))
	for _, of := range []*broker{peer, b} {
		put(t, of.api+"/api/exchanges/%2F/xivo", `{"type":"topic","durable":true}`)
	}
	u := upstreamTo("xivomesh111111111111", peer)
	upstream, policy := b.api+"/api/parameters/federation-upstream/%2F/"+u.Name, b.api+"/api/policies/%2F/"+policyName
	reset := func() {
		for _, url := range []string{upstream, policy} {
			status(t, http.MethodDelete, url)
		}
	}
	running := func() error {
		links, err := c.Links(t.Context())
		if links[u.Name].State != "running" {
			return fmt.Errorf("links %v, %v", links, err)
		}
		return nil
	}
	mended := func(t *testing.T) {
		t.Helper()
		become(t, c.LinkedUpstream(u))
		eventually(t, "the link", running)
	}
	// untilCut tries until a request that was cut off left what is looked for.
	untilCut := func(t *testing.T, method, url string, body any, before func(), left func() bool) {
		t.Helper()
		raw, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		for try := range 1000 {
			before()
			cutOff(t, method, url, raw, time.Duration(try%20)*100*time.Microsecond)
			if left() {
				t.Logf("try %d", try)
				return
			}
		}
		t.Fatal("the broker always acted on what it was asked for")
	}

	for _, tc := range []struct {
		name, url string
		body      any
		first     engine.Resource
		stored    engine.Resource
	}{
		{"an upstream", upstream, map[string]any{"value": u.definition()}, c.Policy(), c.Upstream(u)},
		{"the policy", policy, wantedPolicy, c.Upstream(u), c.Policy()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			untilCut(t, http.MethodPut, tc.url, tc.body, func() {
				reset()
				if err := tc.first.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
			}, func() bool {
				if diff, err := tc.stored.Diff(t.Context()); err != nil {
					t.Fatal(err)
				} else if diff != nil {
					return false
				}
				diff, err := c.LinkedUpstream(u).Diff(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return diff != nil
			})
			mended(t)
		})
	}

	// The supervisor of the bus's links has ended, and its place is taken: the broker
	// fails at each change of an upstream, and stores it.
	t.Run("the removal of the policy", func(t *testing.T) {
		untilCut(t, http.MethodDelete, policy, nil, func() {
			for _, s := range []engine.Resource{c.Policy(), c.Upstream(u)} {
				if err := s.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the link", running)
		}, func() bool {
			return status(t, http.MethodDelete, upstream) == http.StatusInternalServerError
		})
		if err := c.Policy().Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := c.LinkedUpstream(u).Apply(t.Context()); err == nil {
			t.Fatal("the broker is as it should be")
		}
		mended(t)
	})

	// The place of the supervisor of the bus's links is taken, and it does not exist:
	// so the broker leaves it when its start fails. It calls all that it is asked for a
	// success.
	t.Run("neither the upstream anew nor the policy anew helps", func(t *testing.T) {
		for _, s := range []engine.Resource{c.Upstream(u), c.Policy()} {
			if err := s.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		const orphan = `
			[{Bus, _, _, _}] = mirrored_supervisor:which_children(rabbit_federation_exchange_link_sup_sup),
			{_, Delegate, _, _} = lists:keyfind(delegate, 1, supervisor2:which_children(rabbit_federation_exchange_link_sup_sup)),
			ok = supervisor2:terminate_child(Delegate, Bus), ok = supervisor2:delete_child(Delegate, Bus).`
		if out, err := platform.Run(t.Context(), "rabbitmqctl", "eval", orphan); err != nil {
			t.Fatal(out, err)
		}
		mended(t)
		wanted(t, Plugins(&platform.Platform{Root: b.Root}))
	})
}

// status of the broker's answer to a request without a body.
func status(t *testing.T, method, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("guest", "guest")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// cutOff asks the broker for something, and is gone a moment later.
func cutOff(t *testing.T, method, where string, body []byte, after time.Duration) {
	t.Helper()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	req, err := http.NewRequest(method, where, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("guest", "guest")
	if err := req.Write(conn); err != nil {
		t.Fatal(err)
	}
	time.Sleep(after)
}

// upstreamTo is the upstream of a test to a broker.
func upstreamTo(name string, b *broker) Upstream {
	return Upstream{Name: name, Host: b.host(), Account: account, Password: password, MaxHops: 1, Links: 1}
}

func TestTwoBrokersFederate(t *testing.T) {
	t.Parallel()
	a, b := startBroker(t, "127.0.0.1", plugins...), startBroker(t, "127.0.0.2", plugins...)
	ca, cb := a.ready(t), b.ready(t)

	for name, c := range map[string]*Client{"xivo-a-11111111": ca, "xivo-b-22222222": cb} {
		become(t, c.ClusterName(name))
		become(t, c.FederationUser(account, password))
		become(t, c.Policy())
	}
	const idA, idB = "aaaaaaaa-0000-4000-8000-000000000001", "bbbbbbbb-0000-4000-8000-000000000002"
	canaryA, err := OpenCanary(t.Context(), a.amqpURL(), idA)
	if err != nil {
		t.Fatal(err)
	}
	defer canaryA.Close()
	canaryB, err := OpenCanary(t.Context(), b.amqpURL(), idB)
	if err != nil {
		t.Fatal(err)
	}
	defer canaryB.Close()

	t.Run("nobody answers before there are links", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if answered, err := canaryA.Ping(ctx, idB); err != nil || len(answered) != 0 {
			t.Fatalf("answered %v, %v", answered, err)
		}
	})

	t.Run("a ping that waits hears a peer that is linked meanwhile", func(t *testing.T) {
		type result struct {
			answered map[string]time.Duration
			err      error
		}
		results := make(chan result)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			answered, err := canaryA.Ping(ctx, idB)
			results <- result{answered, err}
		}()
		become(t, ca.Upstream(upstreamTo("xivomeshbbbbbbbb0000", b)))
		become(t, cb.Upstream(upstreamTo("xivomeshaaaaaaaa0000", a)))
		r := <-results
		if took, ok := r.answered[idB]; r.err != nil || !ok {
			t.Fatalf("answered %v, %v", r.answered, r.err)
		} else {
			t.Logf("round trip %s", took)
		}
	})

	t.Run("the link runs, without saying the password", func(t *testing.T) {
		links, err := ca.Links(t.Context())
		if err != nil || links["xivomeshbbbbbbbb0000"].State != "running" {
			t.Fatalf("links %v, %v", links, err)
		}
		found, err := ca.Upstreams(t.Context())
		if err != nil || len(found) != 1 || found[0].Name != "xivomeshbbbbbbbb0000" || !slices.Equal(found[0].Hosts, []string{"127.0.0.2"}) {
			t.Fatalf("upstreams %v, %v", found, err)
		}
	})

	t.Run("another password shows as other credentials, and then as an error of the link", func(t *testing.T) {
		u := upstreamTo("xivomeshbbbbbbbb0000", b)
		u.Password = "wrong p@ss"
		diff, err := ca.Upstream(u).Diff(t.Context())
		if err != nil || len(diff) != 1 || !strings.Contains(diff[0], "credentials differ") {
			t.Fatalf("diff %q, %v", diff, err)
		}
		noSecret(t, diff)
		become(t, ca.Upstream(u))
		eventually(t, "the link's error", func() error {
			links, err := ca.Links(t.Context())
			if err != nil {
				return err
			}
			l := links["xivomeshbbbbbbbb0000"]
			noSecret(t, []string{l.Error})
			if l.State != "error" || l.Error == "" {
				return fmt.Errorf("link is %+v", l)
			}
			t.Logf("a refused link says %+v", l)
			return nil
		})
		become(t, ca.Upstream(upstreamTo("xivomeshbbbbbbbb0000", b)))
	})

	t.Run("every other setting of an upstream is compared", func(t *testing.T) {
		u := upstreamTo("xivomeshbbbbbbbb0000", b)
		u.MaxHops, u.Links = 3, 200
		diff, err := ca.Upstream(u).Diff(t.Context())
		if err != nil || len(diff) != 2 {
			t.Fatalf("diff %q, %v", diff, err)
		}
		u.Host = "192.0.2.1"
		diff, err = ca.Upstream(u).Diff(t.Context())
		if err != nil || len(diff) != 3 || !strings.Contains(diff[0], "wanted amqp://192.0.2.1") {
			t.Fatalf("diff %q, %v", diff, err)
		}
		noSecret(t, diff)
	})

	t.Run("a refused upstream does not tell the password", func(t *testing.T) {
		u := upstreamTo("bad", b)
		u.Host = "host name with spaces:port"
		err := ca.Upstream(u).Apply(t.Context())
		if err == nil {
			t.Fatal("accepted")
		}
		t.Log(err)
		noSecret(t, []string{err.Error()})
	})

	t.Run("ctid is announced here and nowhere else", func(t *testing.T) {
		here, there := listen(t, a, "service.registered.#"), listen(t, b, "service.registered.#")
		// The binding has to travel before a message could follow it.
		eventually(t, "the binding at the upstream", func() error {
			body := get(t, a.api+"/api/exchanges/%2F/xivo/bindings/source")
			if strings.Count(body, "service.registered.#") < 2 {
				return fmt.Errorf("bindings %s", body)
			}
			return nil
		})
		if err := canaryA.AnnounceCtid(t.Context(), idB, "service-1", "192.0.2.7"); err != nil {
			t.Fatal(err)
		}
		var m struct {
			Name   string `json:"name"`
			Origin string `json:"origin_uuid"`
			Data   struct {
				ServiceName string   `json:"service_name"`
				ServiceID   string   `json:"service_id"`
				Address     string   `json:"address"`
				Port        int      `json:"port"`
				Tags        []string `json:"tags"`
			} `json:"data"`
		}
		if err := json.Unmarshal((<-here).Body, &m); err != nil {
			t.Fatal(err)
		}
		if m.Name != "service_registered_event" || m.Origin != idB || m.Data.ServiceName != "xivo-ctid" || m.Data.ServiceID == "" ||
			m.Data.Address != "192.0.2.7" || m.Data.Port != 9495 || !slices.Contains(m.Data.Tags, idB) {
			t.Fatalf("announced %+v", m)
		}
		// What another daemon says there does arrive, and it was sent later.
		publish(t, a, "service.registered.later", "later")
		if d := <-there; string(d.Body) != "later" {
			t.Fatalf("the other node heard %s", d.Body)
		}
	})

	t.Run("peers cannot do more than federate", func(t *testing.T) {
		res, err := http.Get(strings.Replace(b.api, "http://", "http://"+account+":"+escape(password.Reveal())+"@", 1) + "/api/overview")
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusUnauthorized && res.StatusCode != http.StatusForbidden {
			t.Fatalf("management says %s", res.Status)
		}
		conn, err := amqp.Dial(fmt.Sprintf("amqp://%s:%s@%s/", account, escape(password.Reveal()), b.host()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ch.QueueDeclare("mine", false, false, false, false, nil); err == nil {
			t.Fatal("a peer may declare any queue")
		}
	})

	t.Run("an upstream goes alone", func(t *testing.T) {
		become(t, ca.Upstream(upstreamTo("xivomeshother", b)))
		become(t, ca.NoUpstream("xivomeshother"))
		wanted(t, ca.Upstream(upstreamTo("xivomeshbbbbbbbb0000", b)))
	})

	t.Run("nothing federated takes all of it out, and the users of XiVO stay", func(t *testing.T) {
		// Once a is gone, its queue on b is what was left there.
		become(t, ca.NoFederation())
		eventually(t, "b's cleaning", func() error {
			if err := cb.NoFederation().Apply(t.Context()); err != nil {
				return err
			}
			if body := get(t, b.api+"/api/queues/%2F"); strings.Contains(body, downstreamQueue) {
				return fmt.Errorf("queues %s", body)
			}
			return nil
		})
		wanted(t, cb.NoFederation())
		if users := get(t, b.api+"/api/users"); !strings.Contains(users, `"guest"`) || strings.Contains(users, account) {
			t.Fatalf("users %s", users)
		}
	})

	t.Run("a canary says when it is closed, and when the bus is gone", func(t *testing.T) {
		other, err := OpenCanary(t.Context(), a.amqpURL(), "third")
		if err != nil {
			t.Fatal(err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		if err, ok := <-other.Done(); ok {
			t.Fatalf("a closed canary says %v", err)
		}
		del(t, a.api+"/api/exchanges/%2F/xivo")
		eventually(t, "the end of a canary without a bus", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			_, _ = canaryA.Ping(ctx)
			select {
			case err := <-canaryA.Done():
				t.Log(err)
				return nil
			default:
				return fmt.Errorf("still open")
			}
		})
	})
}

// The broker of a copy that was not sealed wakes up with the name, the upstreams
// and the policy of its original, and somebody's message already waits for that.
func TestBrokerOfACopy(t *testing.T) {
	a, b := startBroker(t, "127.0.0.3", plugins...), startBroker(t, "127.0.0.4", plugins...)
	ca, cb := a.ready(t), b.ready(t)
	become(t, ca.FederationUser(account, password))
	become(t, cb.ClusterName("xivo-b-22222222"))
	become(t, cb.Upstream(upstreamTo("xivomesh111111111111", a)))
	become(t, cb.Policy())
	var canary *Canary // declares the bus
	for _, of := range []*broker{a, b} {
		var err error
		if canary, err = OpenCanary(t.Context(), of.amqpURL(), of.host()); err != nil {
			t.Fatal(err)
		}
		defer canary.Close()
	}
	listen(t, b, "status.user")
	eventually(t, "the original's link", func() error {
		links, err := cb.Links(t.Context())
		if links["xivomesh111111111111"].State != "running" {
			return fmt.Errorf("links %v, %v", links, err)
		}
		if body := get(t, a.api+"/api/exchanges/%2F/xivo/bindings/source"); !strings.Contains(body, "status.user") {
			return fmt.Errorf("bindings %s", body)
		}
		return nil
	})

	b.Kill()
	if err, ok := <-canary.Done(); !ok || err == nil {
		t.Fatal("the canary did not tell of a broker that died")
	}
	eventually(t, "the end of the original's link", func() error {
		if q := left(t, a)["xivo-b-22222222"]; q.Consumers != 0 {
			return fmt.Errorf("%+v", q)
		}
		return nil
	})
	publish(t, a, "status.user", "for the original")

	// From here on it is the copy.
	p := &platform.Platform{Root: b.Root, Init: restarting{t: t, broker: b}}
	become(t, ManagementOnly(p))
	b.Restart(t)
	cb = b.ready(t)
	t.Setenv("PATH", b.Tools(t)+":"+os.Getenv("PATH"))

	restart := func(ctx context.Context) error { return p.Init.Restart(ctx, "rabbitmq-server") }
	t.Run("it takes nothing from the original before it is settled", func(t *testing.T) {
		found, err := cb.Upstreams(t.Context())
		if err != nil || len(found) != 1 {
			t.Fatalf("it is no copy: upstreams %v, %v", found, err)
		}
		become(t, cb.NoFederation())
		become(t, cb.ClusterName("xivo-c-33333333"))
		become(t, cb.Federation(p, restart))
	})
	t.Run("nor after it", func(t *testing.T) {
		become(t, cb.FederationUser(account, password))
		become(t, cb.Policy())
		become(t, cb.Upstream(upstreamTo("xivomesh111111111111", a)))
		again := listen(t, b, "status.user")
		eventually(t, "its own link", func() error {
			if body := get(t, a.api+"/api/exchanges/%2F/xivo/bindings/source"); !strings.Contains(body, downstreamQueue+"xivo-c-33333333") {
				return fmt.Errorf("bindings %s", body)
			}
			return nil
		})
		publish(t, a, "status.user", "for everybody")
		if d := <-again; string(d.Body) != "for everybody" {
			t.Errorf("it took %q", d.Body)
		}
		eventually(t, "both messages to wait for the original", func() error {
			if q := left(t, a)["xivo-b-22222222"]; q.Messages != 2 {
				return fmt.Errorf("%+v", q)
			}
			return nil
		})
	})
	t.Run("a broker that cannot be told while it runs is restarted", func(t *testing.T) {
		become(t, ManagementOnly(p))
		b.Restart(t)
		b.ready(t)
		tools := t.TempDir()
		if err := os.WriteFile(filepath.Join(tools, "rabbitmq-plugins"), []byte("#!/bin/sh\nexit 69\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", tools+":"+os.Getenv("PATH"))
		become(t, cb.Federation(p, restart))
	})
}

// restarting is the part of an init system that restarts a broker.
type restarting struct {
	platform.Init
	t      *testing.T
	broker *broker
}

func (r restarting) Restart(context.Context, string) error {
	r.broker.Restart(r.t)
	return nil
}

type queue struct {
	Name                string
	Consumers, Messages int
}

// left are the queues that downstreams have on a broker, by their names.
func left(t *testing.T, b *broker) map[string]queue {
	t.Helper()
	var all []queue
	if err := json.Unmarshal([]byte(get(t, b.api+"/api/queues/%2F?columns=name,consumers,messages")), &all); err != nil {
		t.Fatal(err)
	}
	of := map[string]queue{}
	for _, q := range all {
		if name, ok := strings.CutPrefix(q.Name, downstreamQueue); ok {
			of[name] = q
		}
	}
	return of
}

func listen(t *testing.T, b *broker, key string) <-chan amqp.Delivery {
	t.Helper()
	conn, err := amqp.Dial(b.amqpURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(q.Name, key, exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	d, err := ch.Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func publish(t *testing.T, b *broker, key, body string) {
	t.Helper()
	conn, err := amqp.Dial(b.amqpURL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Publish(exchange, key, false, false, amqp.Publishing{Body: []byte(body)}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, url string) string       { return call(t, http.MethodGet, url, "") }
func put(t *testing.T, url, body string) string { return call(t, http.MethodPut, url, body) }
func del(t *testing.T, url string) string       { return call(t, http.MethodDelete, url, "") }

func call(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("guest", "guest")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 300 {
		t.Fatalf("%s %s: %s %s %v", method, url, res.Status, data, err)
	}
	return string(data)
}
