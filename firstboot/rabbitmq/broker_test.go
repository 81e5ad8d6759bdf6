package rabbitmq

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// plugins are all that the mesh needs.
var plugins = append([]string{management}, federation...)

// broker is a real RabbitMQ with the settings that this package writes.
type broker struct {
	*server.Broker
	api    string // of the management API
	config string
}

func (b *broker) amqpURL() string { return b.AMQP }
func (b *broker) host() string    { return b.Host }
func (b *broker) client() *Client { return Dial(URL(b.api)) }

// startBroker starts one that listens on an IP of loopback.
func startBroker(t *testing.T, ip string, plugins ...string) *broker {
	t.Helper()
	b := &broker{Broker: server.RabbitMQ(t, ip)}
	b.api = fmt.Sprintf("http://127.0.0.1:%d", b.Management)
	config, _, err := setListener([]byte("[{rabbit, [{disk_free_limit, 100000000}, {heartbeat, 0}]}].\n"),
		strings.Replace(managementListener, "15672", fmt.Sprint(b.Management), 1))
	if err != nil {
		t.Fatal(err)
	}
	b.config = string(config)
	b.start(t, plugins...)
	return b
}

// start runs the broker with these plugins, on the data that it has.
func (b *broker) start(t *testing.T, plugins ...string) {
	t.Helper()
	b.Start(t, b.config, plugins...)
}

// ready waits for a broker that was started.
func (b *broker) ready(t *testing.T) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := b.client()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

// eventually repeats a check until it is content.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
