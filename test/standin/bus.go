package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// busMessage is the form of everything on XiVO's bus.
type busMessage struct {
	Name       string          `json:"name"`
	OriginUUID string          `json:"origin_uuid"`
	Data       json.RawMessage `json:"data"`
}

// consumedKeys are the routing keys that xivo-ctid binds to the exchange.
var consumedKeys = []string{"status.user", "status.endpoint", "status.agent", "service.registered.#", "service.deregistered.#"}

// errPoison is a message that ends the listener for good.
var errPoison = errors.New("the listener dies: no message of the bus is seen until the daemon restarts")

const busRetry = 2 * time.Second

// bus is one daemon's access to the exchange of a broker.
type bus struct {
	url, exchange string
	log           *slog.Logger

	mu   sync.Mutex // guards conn: publishing has a connection of its own
	conn *amqp.Connection
}

func newBus(c ctidConfig, log *slog.Logger) *bus {
	u := url.URL{
		Scheme: "amqp",
		User:   url.UserPassword(c.Bus.Username, c.Bus.Password),
		Host:   net.JoinHostPort(c.Bus.Host, strconv.Itoa(c.Bus.Port)),
	}
	return &bus{url: u.String(), exchange: c.Bus.ExchangeName, log: log}
}

// channel opens a channel with the exchange declared as XiVO's daemons do: the
// first to come makes it.
func (b *bus) channel(conn *amqp.Connection) (*amqp.Channel, error) {
	ch, err := conn.Channel()
	if err != nil {
		return nil, err
	}
	if err := ch.ExchangeDeclare(b.exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return nil, fmt.Errorf("declare exchange %s: %w", b.exchange, err)
	}
	return ch, nil
}

// publish sends a message; a broken connection is opened again once.
func (b *bus) publish(ctx context.Context, routingKey string, m any) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for range 2 {
		if err = b.publishOnce(ctx, routingKey, body); err == nil {
			return nil
		}
		if b.conn != nil {
			b.conn.Close()
			b.conn = nil
		}
	}
	return fmt.Errorf("publish %s: %w", routingKey, err)
}

func (b *bus) publishOnce(ctx context.Context, routingKey string, body []byte) (err error) {
	if b.conn == nil {
		if b.conn, err = amqp.Dial(b.url); err != nil {
			return err
		}
	}
	ch, err := b.channel(b.conn)
	if err != nil {
		return err
	}
	defer ch.Close()
	if err := ch.Confirm(false); err != nil {
		return err
	}
	sent, err := ch.PublishWithDeferredConfirmWithContext(ctx, b.exchange, routingKey, false, false,
		amqp.Publishing{ContentType: "application/json", Body: body})
	if err != nil {
		return err
	}
	_, err = sent.WaitContext(ctx)
	return err
}

// consume hands every message to handle, and comes back after each loss of the
// broker, until the context ends or handle says errPoison.
func (b *bus) consume(ctx context.Context, handle func(routingKey string, body []byte) error) {
	for {
		err := b.consumeOnce(ctx, handle)
		if ctx.Err() != nil {
			return
		}
		b.log.Error("bus", "err", err)
		if errors.Is(err, errPoison) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(busRetry):
		}
	}
}

func (b *bus) consumeOnce(ctx context.Context, handle func(string, []byte) error) error {
	conn, err := amqp.Dial(b.url)
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := b.channel(conn)
	if err != nil {
		return err
	}
	queue, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return err
	}
	for _, key := range consumedKeys {
		if err := ch.QueueBind(queue.Name, key, b.exchange, false, nil); err != nil {
			return err
		}
	}
	deliveries, err := ch.ConsumeWithContext(ctx, queue.Name, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	b.log.Info("listening to the bus", "exchange", b.exchange)
	for d := range deliveries {
		if err := handle(d.RoutingKey, d.Body); err != nil {
			return err
		}
	}
	return errors.New("connection lost")
}

func (b *bus) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		b.conn.Close()
		b.conn = nil
	}
}
