package rabbitmq

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// answering is an API that gives canned answers, by method and path.
func answering(t *testing.T, answers map[string]string) *Client {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.URL.EscapedPath()]
		if !ok {
			answer = "404 {}"
		}
		status, body, _ := strings.Cut(answer, " ")
		w.WriteHeader(map[string]int{"200": 200, "401": 401, "404": 404, "500": 500}[status])
		w.Write([]byte(body))
	}))
	t.Cleanup(s.Close)
	return Dial(URL(s.URL))
}

func TestWaitSaysWhatItWaitedFor(t *testing.T) {
	for _, test := range []struct {
		name, overview, says string
		hopeless             bool
	}{
		{"guest is refused", `401 {}`, "restore that account", true},
		{"wheezy's own broker", `200 {"rabbitmq_version":"2.8.4"}`, `RabbitMQ "2.8.4" is too old`, true},
		{"an answer without a version", `200 {}`, `RabbitMQ "" is too old`, true},
		{"not ready", `500 {"error":"booting"}`, "last seen: Error 500 (booting)", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := answering(t, map[string]string{"GET /api/overview": test.overview})
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			err := c.Wait(ctx)
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Fatalf("Wait says %v", err)
			}
			if errors.Is(err, context.DeadlineExceeded) == test.hopeless {
				t.Fatalf("hopeless should be %v: %v", test.hopeless, err)
			}
		})
	}
}

func TestWaitForNobody(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	err := Dial(URL("http://127.0.0.1:1")).Wait(ctx)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || !strings.Contains(err.Error(), "is rabbitmq-server running") {
		t.Fatalf("Wait says %v", err)
	}
}

func TestAnswersThatAreNoneAreErrors(t *testing.T) {
	c := answering(t, map[string]string{
		"GET /api/parameters/federation-upstream": "200 []",
		"GET /api/policies/%2F":                   "200 []",
		"GET /api/users/":                         "200 []",
		"GET /api/queues/%2F":                     "200 []",
	})
	if _, err := c.NoFederation().Diff(t.Context()); err == nil {
		t.Fatal("a broker without users was believed")
	}
}

func TestAnAnswerWithoutAnEndIsAnError(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Write([]byte("["))
		for item := []byte(strings.Repeat(`{"name": "x", "vhost": "/"},`, 1000)); ; {
			if _, err := w.Write(item); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	c := Dial(URL(s.URL))
	if found, err := c.Upstreams(t.Context()); !errors.Is(err, limit.ErrTooLong) {
		t.Errorf("%d upstreams, %v", len(found), err)
	}
	if found, err := c.Links(t.Context()); !errors.Is(err, limit.ErrTooLong) {
		t.Errorf("%d links, %v", len(found), err)
	}
}

func TestFederates(t *testing.T) {
	for version, want := range map[string]bool{
		"2.8.4": false, "3.2.4": false, "3.3.5": true, "3.10.8": true, "4.0.2": true, "3.13.0-rc.1": true, "": false, "x.y": false,
	} {
		if got := federates(version); got != want {
			t.Errorf("%q: %v", version, got)
		}
	}
}

func TestUpstreamDefinition(t *testing.T) {
	got := Upstream{Name: "b", Host: "192.0.2.2", Account: "xivo-mesh-0a1b2c", Password: "p@ss/w% +:ö", MaxHops: 2, Links: 120}.definition()
	want := rabbithole.FederationDefinition{
		Uri:            rabbithole.URISet{"amqp://xivo-mesh-0a1b2c:p%40ss%2Fw%25%20%2B%3A%C3%B6@192.0.2.2?heartbeat=10"},
		MaxHops:        2,
		ReconnectDelay: 6,
		Expires:        30 * 60 * 1000,
		MessageTTL:     5 * 60 * 1000,
		AckMode:        "on-confirm",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatal(d)
	}
	if d := (Upstream{Links: 1}).definition(); d.ReconnectDelay != 5 || d.MaxHops != 1 {
		t.Fatalf("least values are %+v", d)
	}
}

func TestOpens(t *testing.T) {
	// What rabbit-hole, and so RabbitMQ, makes of a password.
	sum := rabbithole.Base64EncodedSaltedPasswordHashSHA512("right")
	user := &rabbithole.UserInfo{PasswordHash: sum, HashingAlgorithm: rabbithole.HashingAlgorithmSHA512}
	if !opens(user, "right") || opens(user, "wrong") || opens(user, "") {
		t.Fatal("SHA-512")
	}
	// guest/guest, as a broker before 3.6 stores it; from RabbitMQ's own documentation of the API.
	old := &rabbithole.UserInfo{PasswordHash: "8LYTIFbVUwi8HuV/dGlp2BYsD1I="}
	if !opens(old, "guest") || opens(old, "other") {
		t.Fatal("MD5")
	}
	for _, broken := range []string{"", "AAAA", "%"} {
		if opens(&rabbithole.UserInfo{PasswordHash: broken}, "") {
			t.Fatalf("%q opens", broken)
		}
	}
}

func TestARefusalIsToldWithoutThePassword(t *testing.T) {
	err := withoutPassword(errors.New("bad amqp://u:p%40ss@h and p@ss"), secret.Secret("p@ss"))
	if want := "bad amqp://u:[redacted]@h and [redacted]"; err.Error() != want {
		t.Fatalf("%q", err)
	}
}
