package rabbitmq

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Routing keys of the canary. No daemon of XiVO binds them, and a peer's pong
// is bound by its addressee only, so federation carries it to that node alone.
const (
	pingKey    = "xivo_mesh.ping"
	pongPrefix = "xivo_mesh.pong."

	pingName = "xivo_mesh_ping"
	pongName = "xivo_mesh_pong"

	// pingAgain is when a ping that was not answered by all is sent again: one
	// that left before a new link had bound its keys is lost.
	pingAgain = time.Second
	// canaryTTL is how long a ping or pong may wait in any queue.
	canaryTTL = 10 * time.Second
	// canaryQueue bounds what waits for a canary that does not read.
	canaryQueue = 1000
	// dialTimeout is for a caller whose context has no deadline.
	dialTimeout = 30 * time.Second

	// localHops is the length of the route that a message pretends to have
	// come, so that no downstream takes it over: longer than any max-hops.
	localHops = 100
)

// message is the form of everything on XiVO's bus.
type message struct {
	Name   string `json:"name"`
	Origin string `json:"origin_uuid"`
	Data   any    `json:"data"`
}

// ping is the data of a ping, and of the pong that answers it.
type ping struct {
	ID string `json:"id"`
}

// Canary is this node on the mesh's bus: it answers the pings of peers, and
// sends its own. An answer proves the whole way: their link to us, their
// canary, our link to them. It is safe for concurrent use.
type Canary struct {
	uuid  string
	conn  *amqp.Connection
	in    *amqp.Channel
	out   *amqp.Channel // publishing does not share a channel with consuming
	done  chan error
	ended chan struct{} // closed after done has its error

	mu     sync.Mutex
	closed bool             // by Close
	waits  map[string]*wait // by the id of a ping
}

// wait is one call of Ping. Canary.mu guards its maps.
type wait struct {
	sent     map[string]time.Time // by id
	answered map[string]time.Duration
	changed  chan struct{}
}

// OpenCanary connects to the local bus as the node with this UUID and begins
// to answer. The bus's exchange is declared as XiVO's daemons do when it is
// not there yet. Its queue is bounded and goes with the connection. ctx is for
// the opening only; afterwards Done tells when the connection ended, and
// opening another one is up to the caller.
func OpenCanary(ctx context.Context, amqpURL, uuid string) (*Canary, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c := &Canary{
		uuid:  uuid,
		done:  make(chan error, 1),
		ended: make(chan struct{}),
		waits: map[string]*wait{},
	}

	var err error
	c.conn, err = amqp.DialConfig(amqpURL, amqp.Config{
		Heartbeat: heartbeat * time.Second,
		Locale:    "en_US",
		Dial: func(network, address string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			// For the handshake; amqp takes it off again.
			deadline, _ := ctx.Deadline()
			return conn, conn.SetDeadline(deadline)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: connect the canary to the bus: %w; is %s running?", err, platform.Broker)
	}

	// What follows is not bound to ctx by amqp.
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	deliveries, err := c.subscribe()
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.conn.Close()
		return nil, fmt.Errorf("rabbitmq: set the canary up on exchange %s: %w", exchange, err)
	}
	closed := c.conn.NotifyClose(make(chan *amqp.Error, 1))
	go c.serve(deliveries, closed)
	return c, nil
}

func (c *Canary) subscribe() (<-chan amqp.Delivery, error) {
	var err error
	if c.in, err = c.conn.Channel(); err != nil {
		return nil, err
	}
	if c.out, err = c.conn.Channel(); err != nil {
		return nil, err
	}
	if err := c.in.ExchangeDeclare(exchange, amqp.ExchangeTopic, true, false, false, false, nil); err != nil {
		return nil, err
	}
	queue, err := c.in.QueueDeclare("", false, true, true, false, amqp.Table{
		"x-max-length": int32(canaryQueue),
	})
	if err != nil {
		return nil, err
	}
	for _, key := range []string{pingKey, pongPrefix + c.uuid} {
		if err := c.in.QueueBind(queue.Name, key, exchange, false, nil); err != nil {
			return nil, err
		}
	}
	return c.in.Consume(queue.Name, "", true, true, false, false, nil)
}

// serve answers pings and hands out pongs until the connection ends.
func (c *Canary) serve(deliveries <-chan amqp.Delivery, closed <-chan *amqp.Error) {
	for d := range deliveries {
		var data ping
		m := message{Data: &data}
		// Others may publish on these keys, too, and not everything that they say
		// is a message; our own come back.
		if json.Unmarshal(d.Body, &m) != nil || m.Origin == "" || m.Origin == c.uuid {
			continue
		}
		switch m.Name {
		case pingName:
			// A failure has closed the connection, which ends this loop.
			_ = c.publish(pongPrefix+m.Origin, pongName, data)
		case pongName:
			c.pong(m.Origin, data.ID)
		}
	}

	// Deliveries also end when somebody deletes the queue: a canary that hears
	// nothing is of no use, so the connection goes too.
	c.conn.Close()
	c.mu.Lock()
	intended := c.closed
	c.mu.Unlock()
	if reason := <-closed; reason != nil {
		c.done <- fmt.Errorf("rabbitmq: the canary's connection to the bus ended: %w", reason)
	} else if !intended {
		c.done <- errors.New("rabbitmq: the canary's queue or channel on the bus was closed")
	}
	close(c.done)
	close(c.ended)
}

func (c *Canary) pong(from, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waits[id]
	if w == nil {
		return
	}
	// Several routes, in a ring, bring several answers: the first one counts.
	if _, again := w.answered[from]; again {
		return
	}
	w.answered[from] = time.Since(w.sent[id])
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Ping asks every peer to answer, again every second, until all wanted ones
// did or ctx ends, and returns who answered, wanted or not, and how long the
// answer took. A peer whose link comes up meanwhile is heard too. A peer that
// stays silent is missing in the answer: the error is only about the local
// bus. Without wanted peers it listens until ctx ends.
func (c *Canary) Ping(ctx context.Context, wanted ...string) (map[string]time.Duration, error) {
	w := &wait{sent: map[string]time.Time{}, answered: map[string]time.Duration{}, changed: make(chan struct{}, 1)}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for id := range w.sent {
			delete(c.waits, id)
		}
	}()

	again := time.NewTicker(pingAgain)
	defer again.Stop()
	for {
		id := rand.Text()
		c.mu.Lock()
		w.sent[id] = time.Now()
		c.waits[id] = w
		c.mu.Unlock()
		if err := c.publish(pingKey, pingName, ping{ID: id}); err != nil {
			return c.answers(w), fmt.Errorf("rabbitmq: send the canary's ping: %w", err)
		}

		for waiting := true; waiting; {
			select {
			case <-w.changed:
				answered := c.answers(w)
				if len(wanted) > 0 && containsAll(answered, wanted) {
					return answered, nil
				}
			case <-again.C:
				waiting = false
			case <-ctx.Done():
				return c.answers(w), nil
			case <-c.ended:
				return c.answers(w), errors.New("rabbitmq: the canary's connection ended while it waited for answers")
			}
		}
	}
}

func containsAll(answered map[string]time.Duration, wanted []string) bool {
	for _, uuid := range wanted {
		if _, ok := answered[uuid]; !ok {
			return false
		}
	}
	return true
}

func (c *Canary) answers(w *wait) map[string]time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(w.answered)
}

// AnnounceCtid tells the local xivo-ctid where the one of a peer is, under the id
// that it has in Consul, as that peer's own ctid would when it registers: the
// local one keeps an empty answer about a peer until it hears this. The message
// stays on this node: it says to have come too far for any downstream to take
// it over.
func (c *Canary) AnnounceCtid(ctx context.Context, peerUUID, serviceID, address string) error {
	const service = string(platform.Ctid) // in every version that has it
	route := make([]any, localHops)
	for i := range route {
		route[i] = amqp.Table{}
	}
	err := c.send(ctx, "service.registered."+service, message{
		Name:   "service_registered_event",
		Origin: peerUUID,
		Data: map[string]any{
			"service_name": service,
			"service_id":   serviceID,
			"address":      address,
			"port":         9495,
			"tags":         []string{service, peerUUID},
		},
	}, amqp.Table{"x-received-from": route})
	if err != nil {
		return fmt.Errorf("rabbitmq: announce the xivo-ctid of %s at %s: %w", peerUUID, address, err)
	}
	return nil
}

// Done yields one error when the connection has ended by itself, and is then
// closed; after Close it is only closed.
func (c *Canary) Done() <-chan error { return c.done }

// Close ends the connection; the queue goes with it.
func (c *Canary) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	err := c.conn.Close()
	<-c.ended
	if errors.Is(err, amqp.ErrClosed) {
		return nil
	}
	return err
}

func (c *Canary) publish(key, name string, data ping) error {
	return c.send(context.Background(), key, message{Name: name, Origin: c.uuid, Data: data}, nil)
}

// send publishes on the bus. A failure ends the connection, so that Done
// tells: a canary that cannot speak must not look alive.
func (c *Canary) send(ctx context.Context, key string, m message, headers amqp.Table) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	err = c.out.PublishWithContext(ctx, exchange, key, false, false, amqp.Publishing{
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		Expiration:      strconv.FormatInt(canaryTTL.Milliseconds(), 10),
		Headers:         headers,
		Body:            body,
	})
	if err != nil {
		c.conn.Close()
	}
	return err
}
