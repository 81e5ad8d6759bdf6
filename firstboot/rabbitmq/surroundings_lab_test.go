package rabbitmq

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// What others may have done to a broker, each on a real one.
func TestSurroundingsOfTheBroker(t *testing.T) {
	t.Parallel()
	b := startBroker(t, "127.0.0.5", plugins...)
	c := b.ready(t)
	canary, err := OpenCanary(t.Context(), b.amqpURL(), "one") // declares the bus
	if err != nil {
		t.Fatal(err)
	}
	defer canary.Close()

	t.Run("our account with another password, a tag and more rights is put right", func(t *testing.T) {
		put(t, b.api+"/api/users/"+account, `{"password":"theirs","tags":"administrator"}`)
		put(t, b.api+"/api/permissions/%2F/"+account, `{"configure":".*","write":".*","read":".*"}`)
		diff, err := c.FederationUser(account, password).Diff(t.Context())
		if err != nil || len(diff) != 3 {
			t.Fatalf("diff %q, %v; want password, tag and rights", diff, err)
		}
		become(t, c.FederationUser(account, password))
	})

	become(t, c.Policy())
	for _, p := range []struct {
		name, policy string
		wins         bool
	}{
		{"stronger, for the bus", `{"pattern":"^xivo$","apply-to":"exchanges","priority":9,"definition":{"alternate-exchange":"amq.fanout"}}`, true},
		{"stronger, for everything", `{"pattern":"","apply-to":"all","priority":2,"definition":{"alternate-exchange":"amq.fanout"}}`, true},
		{"stronger, with an open pattern", `{"pattern":"iv","apply-to":"exchanges","priority":2,"definition":{"federation-upstream-set":"of-theirs"}}`, true},
		{"stronger, with one upstream of its own", `{"pattern":"xivo","apply-to":"exchanges","priority":2,"definition":{"federation-upstream":"theirs"}}`, true},
		{"stronger, with a pattern that only Erlang reads", `{"pattern":"^(?=xivo)","apply-to":"exchanges","priority":2,"definition":{"alternate-exchange":"amq.fanout"}}`, true},
		{"stronger, for another exchange", `{"pattern":"^other$","apply-to":"exchanges","priority":9,"definition":{"alternate-exchange":"amq.fanout"}}`, false},
		{"stronger, for queues", `{"pattern":".*","apply-to":"queues","priority":9,"definition":{"expires":1800000}}`, false},
		{"weaker", `{"pattern":"^xivo$","apply-to":"exchanges","priority":0,"definition":{"alternate-exchange":"amq.fanout"}}`, false},
	} {
		t.Run("a policy of somebody else, "+p.name, func(t *testing.T) {
			put(t, b.api+"/api/policies/%2F/theirs", p.policy)
			defer del(t, b.api+"/api/policies/%2F/theirs")
			eventually(t, "the broker's choice", func() error {
				var bus struct{ Policy string }
				if err := json.Unmarshal([]byte(get(t, b.api+"/api/exchanges/%2F/xivo")), &bus); err != nil {
					return err
				}
				if bus.Policy != map[bool]string{true: "theirs", false: policyName}[p.wins] {
					return fmt.Errorf("the bus follows %s", bus.Policy)
				}
				return nil
			})
			if !p.wins {
				wanted(t, c.Policy())
				return
			}
			diff, err := c.Policy().Diff(t.Context())
			if err != nil || len(diff) != 1 || !strings.Contains(diff[0], "policy theirs") {
				t.Errorf("diff %q, %v; want one that names the policy", diff, err)
			}
			if err := c.Policy().Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "policy theirs") || !strings.Contains(err.Error(), "lower its priority") {
				t.Errorf("called a success: %v", err)
			}
			if all := get(t, b.api+"/api/policies/%2F"); !strings.Contains(all, `"theirs"`) {
				t.Errorf("it was removed: %s", all)
			}
		})
	}

	t.Run("management is off", func(t *testing.T) {
		b.Kill()
		b.start(t)
		eventually(t, "the bus", func() error {
			canary, err := OpenCanary(t.Context(), b.amqpURL(), "two")
			if err == nil {
				err = canary.Close()
			}
			return err
		})
		waitFails(t, c)
	})
	t.Run("it is down", func(t *testing.T) {
		b.Kill()
		waitFails(t, c)
		for name, s := range map[string]engine.Resource{
			"name": c.ClusterName("x"), "account": c.FederationUser(account, password), "policy": c.Policy(),
			"upstream": c.Upstream(upstreamTo("xivomeshother", b)), "clean": c.NoFederation(),
		} {
			if diff, err := s.Diff(t.Context()); err == nil || diff != nil {
				t.Errorf("%s: silence is an answer: %q", name, diff)
			}
			if err := s.Apply(t.Context()); err == nil {
				t.Errorf("%s: applied", name)
			} else {
				noSecret(t, []string{err.Error()})
			}
		}
	})
}

// waitFails: one clear error, that says what to look at.
func waitFails(t *testing.T, c *Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := c.Wait(ctx)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "is rabbitmq-server running, started after") {
		t.Errorf("error %v", err)
	}
}
