package standin

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// realBus is a bus on a real broker, once that takes messages.
func realBus(t *testing.T) (*bus, *logged) {
	t.Helper()
	broker := server.RabbitMQ(t, "127.0.0.1")
	broker.Start(t, "[].\n")
	log, said := newLog(t)
	b := &bus{url: broker.AMQP, exchange: "xivo", log: log}
	t.Cleanup(b.close)
	eventually(t, "the broker takes messages", func() bool {
		return b.publish(t.Context(), "not.heard", busMessage{Name: "n", Data: json.RawMessage(`{}`)}) == nil
	})
	return b, said
}

func TestBusDeliversWhatXivoCtidListensTo(t *testing.T) {
	b, said := realBus(t)
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	got := map[string]string{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.consume(ctx, func(key string, body []byte) error {
			mu.Lock()
			defer mu.Unlock()
			got[key] = string(body)
			return nil
		})
	}()
	has := func(key string) func() bool {
		return func() bool { mu.Lock(); defer mu.Unlock(); return got[key] != "" }
	}
	heard := func(key string) {
		t.Helper()
		eventually(t, "message "+key+" arrives: "+said.String(), func() bool {
			if err := b.publish(ctx, key, busMessage{"n", uuidA, json.RawMessage(`{}`)}); err != nil {
				t.Fatal(err)
			}
			return has(key)()
		})
	}
	if err := b.publish(ctx, "xivo_mesh.ping", busMessage{Name: "n", Data: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"status.user", "status.endpoint", "status.agent", "service.registered.xivo-ctid", "service.deregistered.xivo-ctid"} {
		heard(key)
	}
	if has("xivo_mesh.ping")() {
		t.Error("a key that is not listened to was delivered")
	}
	if want := `{"name":"n","origin_uuid":"` + uuidA + `","data":{}}`; got["status.user"] != want {
		t.Errorf("got %s, want %s", got["status.user"], want)
	}

	// A lost connection for publishing is opened again.
	b.mu.Lock()
	b.conn.Close()
	b.mu.Unlock()
	mu.Lock()
	clear(got)
	mu.Unlock()
	heard("status.user")
	cancel()
	<-done
}

func TestBusExchangeIsATopicAndDurable(t *testing.T) {
	b, _ := realBus(t)
	if err := b.publish(t.Context(), "status.user", busMessage{Name: "n", Data: json.RawMessage(`{}`)}); err != nil {
		t.Fatal(err)
	}
	conn, err := amqp.Dial(b.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for kind, fits := range map[string]bool{"topic": true, "fanout": false} {
		ch, err := conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.ExchangeDeclare("xivo", kind, true, false, false, false, nil); (err == nil) != fits {
			t.Errorf("declared as %s: %v", kind, err)
		}
	}
}

func TestBusListenerThatDiesStaysDead(t *testing.T) {
	b, _ := realBus(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.consume(ctx, func(string, []byte) error { return errPoison })
	}()
	eventually(t, "the listener ends", func() bool {
		if err := b.publish(ctx, "status.user", "hello"); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	if ctx.Err() != nil {
		t.Error("it ended with the test, not by the message")
	}
}

func TestBusWithoutABrokerIsAnError(t *testing.T) {
	log, _ := newLog(t)
	b := &bus{url: "amqp://guest:guest@127.0.0.1:1/", exchange: "xivo", log: log}
	if err := b.publish(t.Context(), "status.user", busMessage{Data: json.RawMessage(`{}`)}); err == nil {
		t.Error("published to nobody")
	}
}
