package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// Ctid stands in for xivo-ctid: the statuses of this XiVO's users and lines
// for everybody, and those of all XiVO for the clients connected here.
//
// Two things are not the real one's: the protocol of the clients' port, which
// is a small one of JSON lines (see ctiClient), and that statuses are changed
// by a client's command only, there being no telephones.
type Ctid struct {
	Release  Release
	Config   string // the main file; conf.d is beside it
	Database string // DSN: which users and lines exist
	CTI      string // where clients connect
	// UUID is what the environment variable XIVO_UUID says. Since 16.02 it is the
	// identity, and a change of the database is not seen; before, nobody looks.
	UUID   string
	Stderr io.Writer // what configuration files could not be read is told here, and nowhere else
	Log    *slog.Logger
}

// publisher is what a ctid needs of the bus to tell others.
type publisher interface {
	publish(ctx context.Context, routingKey string, message any) error
}

// ctid is a running one.
type ctid struct {
	release  Release
	uuid     string
	config   ctidConfig
	database database
	consul   *consulClient
	bus      publisher
	tracker  *tracker
	kinds    []*notifier
	log      *slog.Logger

	mu       sync.Mutex
	presence map[int]string // of the users here; lost when the process ends
}

// Run serves until the context ends; then the registration is taken back and
// every client's connection drops. It calls ready with the addresses, HTTP
// first and the clients' second, once both are open.
func (c *Ctid) Run(ctx context.Context, ready func([]net.Addr)) error {
	if c.UUID == "" && c.Release.uuidInEnvironment() {
		return errors.New("xivo-ctid stand-in: XIVO_UUID is not set: since 16.02 the identity comes from the environment (systemd's DefaultEnvironment)")
	}
	config, err := loadCtidConfig(c.Config, c.Stderr)
	if err != nil {
		return err
	}
	id := c.UUID
	if !c.Release.uuidInEnvironment() {
		if id, err = database(c.Database).uuid(ctx); err != nil {
			return fmt.Errorf("xivo-ctid stand-in: %w", err)
		}
	}
	bus := newBus(config, c.Log)
	defer bus.close()
	d, err := newCtid(c.Release, id, config, database(c.Database), bus, c.Log)
	if err != nil {
		return err
	}
	service, err := d.service()
	if err != nil {
		return err
	}
	clients, err := listen(c.CTI)
	if err != nil {
		return fmt.Errorf("xivo-ctid stand-in: %w", err)
	}
	defer clients.Close()

	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	running.Go(func() { bus.consume(ctx, d.onMessage(ctx)) })
	running.Go(func() { d.acceptClients(ctx, clients) })

	listen := net.JoinHostPort(config.RestAPI.HTTP.Listen, strconv.Itoa(config.RestAPI.HTTP.Port))
	return serve(ctx, "xivo-ctid", func(addresses []net.Addr) {
		if config.ServiceDiscovery.Enabled {
			running.Go(func() { d.discover(ctx, service) })
		}
		ready(append(addresses, clients.Addr()))
	}, endpoint{listen, nil, d.handler()})
}

func newCtid(release Release, uuid string, config ctidConfig, db database, bus publisher, log *slog.Logger) (*ctid, error) {
	consul, err := newConsulClient(release, config)
	if err != nil {
		return nil, err
	}
	tracker := newTracker(consul, uuid, config.RestAPI.HTTP.Port, log)
	d := &ctid{release: release, uuid: uuid, config: config, database: db, consul: consul, bus: bus, tracker: tracker, log: log, presence: map[int]string{}}
	for _, kind := range []resourceKind{userKind, endpointKind, agentKind} {
		d.kinds = append(d.kinds, newNotifier(release, kind, tracker, log))
	}
	return d, nil
}

// service is what is registered: under a new random id at every start.
func (d *ctid) service() (remoteService, error) {
	address, err := d.config.advertised(d.release)
	if err != nil {
		return remoteService{}, err
	}
	return remoteService{
		Name: "xivo-ctid", ID: uuid.NewString(),
		Address: address, Port: d.config.ServiceDiscovery.AdvertisePort,
		Tags: d.config.tags(d.release, d.uuid),
	}, nil
}

// discover registers the service and keeps its TTL check passing, if it has one
// (otherwise Consul does the checking). It registers once: when Consul loses the
// registration later, only a restart brings it back. When the context ends it
// deregisters; a killed process stays registered.
func (d *ctid) discover(ctx context.Context, s remoteService) {
	sd := d.config.ServiceDiscovery
	retry, refresh := seconds(sd.RetryInterval), seconds(sd.RefreshInterval)
	for {
		err := d.consul.register(ctx, s, d.config.check(d.release))
		if err == nil {
			break
		}
		d.log.Error("registration failed, retrying", "in", retry, "err", err)
		if !sleep(ctx, retry) {
			return
		}
	}
	d.log.Info("registered on consul", "id", s.ID, "address", s.Address, "port", s.Port, "tags", s.Tags)
	d.announce(ctx, "registered", s)

	for d.release.ttlCheck() {
		wait := refresh
		if err := d.consul.passTTL(ctx, s.ID); err != nil && ctx.Err() == nil {
			d.log.Error("ttl pass failed", "err", err)
			wait = retry
		}
		if !sleep(ctx, wait) {
			break
		}
	}

	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if err := d.consul.deregister(last, s.ID); err != nil {
		d.log.Error("failed to deregister", "err", err)
		return
	}
	d.announce(last, "deregistered", s)
}

func (d *ctid) announce(ctx context.Context, what string, s remoteService) {
	data, err := json.Marshal(s)
	if err == nil {
		err = d.bus.publish(ctx, "service."+what+"."+s.Name, busMessage{"service_" + what + "_event", d.uuid, data})
	}
	if err != nil {
		d.log.Error("announce", "err", err)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// onMessage handles what comes from the bus. A message that is not as expected
// is errPoison: nothing in the real one catches the exception it raises.
func (d *ctid) onMessage(ctx context.Context) func(routingKey string, body []byte) error {
	return func(routingKey string, body []byte) error {
		var err error
		switch {
		case strings.HasPrefix(routingKey, "service.registered."):
			err = d.onRegistered(ctx, body)
		case strings.HasPrefix(routingKey, "service.deregistered."):
			err = d.onDeregistered(body)
		default:
			err = d.onStatus(routingKey, body)
		}
		if err != nil {
			return fmt.Errorf("message %s: %w: %w", routingKey, err, errPoison)
		}
		return nil
	}
}

// onRegistered believes the message's origin, not its tags.
func (d *ctid) onRegistered(ctx context.Context, body []byte) error {
	m, data, err := parseMessage(body, "service_name", "service_id", "address", "port", "tags")
	if err != nil {
		return err
	}
	var s remoteService
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if s.Name != "xivo-ctid" {
		return nil
	}
	d.log.Info("service registered", "uuid", m.OriginUUID, "address", s.Address, "port", s.Port)
	d.tracker.add(m.OriginUUID, s)
	for _, n := range d.kinds {
		n.serviceStarted(ctx, m.OriginUUID)
	}
	return nil
}

func (d *ctid) onDeregistered(body []byte) error {
	m, data, err := parseMessage(body, "service_name", "service_id")
	if err != nil {
		return err
	}
	var s remoteService
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if s.Name == "xivo-ctid" {
		d.tracker.remove(m.OriginUUID, s.ID)
	}
	return nil
}

func (d *ctid) onStatus(routingKey string, body []byte) error {
	for _, n := range d.kinds {
		if n.kind.routingKey != routingKey {
			continue
		}
		m, data, err := parseMessage(body, n.kind.id, "status")
		if err != nil {
			return err
		}
		if m.Name != n.kind.name+"_status_update" {
			return fmt.Errorf("KeyError: name %q", m.Name)
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(data, &fields); err != nil {
			return err
		}
		var id int
		if err := json.Unmarshal(fields[n.kind.id], &id); err != nil {
			d.log.Debug("status of no number", "key", routingKey, "id", string(fields[n.kind.id]))
			return nil
		}
		n.update(resource{m.OriginUUID, id}, fields["status"])
	}
	return nil
}

// parseMessage reads a message and insists on its origin and on the named
// fields of its data.
func parseMessage(body []byte, fields ...string) (m busMessage, data json.RawMessage, err error) {
	if err := json.Unmarshal(body, &m); err != nil {
		return m, nil, err
	}
	if m.OriginUUID == "" {
		return m, nil, errors.New("KeyError: origin_uuid")
	}
	var have map[string]json.RawMessage
	if err := json.Unmarshal(m.Data, &have); err != nil {
		return m, nil, fmt.Errorf("data: %w", err)
	}
	for _, f := range fields {
		if _, ok := have[f]; !ok {
			return m, nil, fmt.Errorf("KeyError: data.%s", f)
		}
	}
	return m, m.Data, nil
}

// handler is the HTTP API that other XiVO ask for first statuses. It has no
// authentication.
func (d *ctid) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /0.1/infos", func(w http.ResponseWriter, r *http.Request) {
		answer(w, http.StatusOK, map[string]string{"uuid": d.uuid})
	})
	mux.HandleFunc("GET /0.1/users/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.one(w, r, "SELECT EXISTS (SELECT 1 FROM userfeatures WHERE id = $1)", func(id int) (string, any) { return "presence", d.presenceOf(id) })
	})
	mux.HandleFunc("GET /0.1/endpoints/{id}", func(w http.ResponseWriter, r *http.Request) {
		d.one(w, r, "SELECT EXISTS (SELECT 1 FROM userfeatures WHERE line_id = $1)", func(int) (string, any) { return "status", 0 })
	})
	return mux
}

func (d *ctid) one(w http.ResponseWriter, r *http.Request, exists string, status func(id int) (field string, value any)) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		refuse(w, http.StatusNotFound, "no such id")
		return
	}
	found, err := d.exists(r.Context(), exists, id)
	switch {
	case err != nil:
		d.log.Error("read the database", "err", err)
		refuse(w, http.StatusInternalServerError, "the database did not answer")
	case !found:
		refuse(w, http.StatusNotFound, "no such id")
	default:
		field, v := status(id)
		answer(w, http.StatusOK, map[string]any{"id": id, "origin_uuid": d.uuid, field: v})
	}
}

func (d *ctid) exists(ctx context.Context, query string, id int) (found bool, err error) {
	err = d.database.do(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, query, id).Scan(&found) })
	return found, err
}

func (d *ctid) presenceOf(user int) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p, ok := d.presence[user]; ok {
		return p
	}
	return "disconnected"
}

// setPresence changes the status of a user of this XiVO and tells everybody,
// the clients here too, by the bus.
func (d *ctid) setPresence(ctx context.Context, user int, presence string) error {
	found, err := d.exists(ctx, "SELECT EXISTS (SELECT 1 FROM userfeatures WHERE id = $1)", user)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("no user %d here", user)
	}
	d.mu.Lock()
	d.presence[user] = presence
	d.mu.Unlock()
	data, err := json.Marshal(map[string]any{"user_id": user, "status": presence})
	if err != nil {
		return err
	}
	return d.bus.publish(ctx, userKind.routingKey, busMessage{"user_status_update", d.uuid, data})
}
