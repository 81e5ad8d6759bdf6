package standin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

// busDouble carries messages between ctids that share it, or to none.
type busDouble struct {
	mu       sync.Mutex
	sent     []string // routing keys
	messages []busMessage
	handlers []func(string, []byte) error
}

func (b *busDouble) publish(_ context.Context, routingKey string, m any) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	b.mu.Lock()
	b.sent = append(b.sent, routingKey)
	b.messages = append(b.messages, m.(busMessage))
	handlers := b.handlers
	b.mu.Unlock()
	for _, h := range handlers {
		if err := h(routingKey, body); err != nil {
			return err
		}
	}
	return nil
}

func newCtidTest(t *testing.T, uuid string, consul *consulDouble, b *busDouble, db database) *ctid {
	t.Helper()
	return newCtidOf(t, xivo1603, uuid, consul, b, db)
}

func newCtidOf(t *testing.T, release Release, uuid string, consul *consulDouble, b *busDouble, db database) *ctid {
	t.Helper()
	log, _ := newLog(t)
	config := consul.config
	config.RestAPI.HTTP.Port = 9495
	d, err := newCtid(release, uuid, config, db, b, log)
	if err != nil {
		t.Fatal(err)
	}
	b.handlers = append(b.handlers, d.onMessage(t.Context()))
	return d
}

// peerCtid is another XiVO's HTTP API: user 7 has the presence.
func peerCtid(t *testing.T, uuid, presence string) (address string, port int) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/0.1/users/7":
			answer(w, 200, map[string]any{"id": 7, "origin_uuid": uuid, "presence": presence})
		case "/0.1/endpoints/21":
			answer(w, 200, map[string]any{"id": 21, "origin_uuid": uuid, "status": 8})
		default:
			refuse(w, 404, "no such id")
		}
	}))
	t.Cleanup(s.Close)
	a := s.Listener.Addr().(*net.TCPAddr)
	return a.IP.String(), a.Port
}

func peerService(t *testing.T, uuid, presence string) catalogService {
	address, port := peerCtid(t, uuid, presence)
	s := ctidAt(address, "id-"+uuid, uuid, "xivo-ctid")
	s.ServicePort = port
	return s
}

// ctiTest is a client connected to a ctid.
type ctiTest struct {
	net.Conn
	lines chan string // closed when the connection is
}

func connectTo(t *testing.T, d *ctid) *ctiTest {
	t.Helper()
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close() })
	go d.serveClient(t.Context(), there)
	return readLines(here)
}

func readLines(conn net.Conn) *ctiTest {
	c := &ctiTest{conn, make(chan string, 100)}
	go func() {
		defer close(c.lines)
		for s := bufio.NewScanner(conn); s.Scan(); {
			c.lines <- s.Text()
		}
	}()
	return c
}

func (c *ctiTest) say(t *testing.T, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c, format+"\n", args...); err != nil {
		t.Fatal(err)
	}
}

func (c *ctiTest) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case got, ok := <-c.lines:
		if !ok {
			t.Fatalf("the connection was closed, want %s", want)
		}
		var g, w any
		if err := errors.Join(json.Unmarshal([]byte(got), &g), json.Unmarshal([]byte(want), &w)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(w, g); diff != "" {
			t.Fatal(diff)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("waited 10s for %s", want)
	}
}

const subscribe7 = `{"class":"subscribe_user_status","xivo_uuid":%q,"user_id":7}`

func update7(uuid, status string) string {
	return fmt.Sprintf(`{"class":"user_status_update","xivo_uuid":%q,"user_id":7,"status":%q}`, uuid, status)
}

func status7(uuid, status string) busMessage {
	return busMessage{"user_status_update", uuid, json.RawMessage(fmt.Sprintf(`{"user_id":7,"status":%q}`, status))}
}

func TestClientSeesFirstTheFetchedStatusThenEveryChange(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	consul.add("dc-b", peerService(t, uuidB, "available"))
	c := connectTo(t, newCtidTest(t, uuidA, consul, b, ""))
	c.say(t, subscribe7, uuidB)
	c.expect(t, update7(uuidB, "available"))
	for _, status := range []string{"away", "donotdisturb"} {
		b.publish(t.Context(), "status.user", status7(uuidB, status))
		c.expect(t, update7(uuidB, status))
	}
	// The same user id of another XiVO, another user, another kind: not ours.
	b.publish(t.Context(), "status.user", status7(uuidA, "wrong"))
	b.publish(t.Context(), "status.user", busMessage{"user_status_update", uuidB, json.RawMessage(`{"user_id":8,"status":"wrong"}`)})
	b.publish(t.Context(), "status.endpoint", busMessage{"endpoint_status_update", uuidB, json.RawMessage(`{"endpoint_id":7,"status":1}`)})
	b.publish(t.Context(), "status.user", status7(uuidB, "last"))
	c.expect(t, update7(uuidB, "last"))
}

func TestOnlyTheBusTellsStatusesOf1716(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	consul.add("dc-b", peerService(t, uuidB, "available"))
	c := connectTo(t, newCtidOf(t, Release{17, 16}, uuidA, consul, b, ""))
	c.say(t, subscribe7, uuidB)
	c.say(t, `{"class":"nonsense"}`)
	c.expect(t, `{"class":"error","error":"unknown class \"nonsense\""}`)
	b.publish(t.Context(), "status.user", status7(uuidB, "away"))
	c.expect(t, update7(uuidB, "away"))
	if n := consul.count("GET"); n != 0 {
		t.Errorf("consul was asked %d times", n)
	}
}

func TestSecondSubscriberGetsTheKnownStatus(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	d := newCtidTest(t, uuidA, consul, b, "")
	b.publish(t.Context(), "status.user", status7(uuidB, "away"))
	c := connectTo(t, d)
	c.say(t, subscribe7, uuidB)
	c.expect(t, update7(uuidB, "away"))
	if n := consul.count("GET"); n != 0 {
		t.Errorf("consul was asked %d times for what was known", n)
	}
}

func TestEndpointsAreFetchedAndAgentsAreNot(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	consul.add("dc-b", peerService(t, uuidB, "available"))
	c := connectTo(t, newCtidTest(t, uuidA, consul, b, ""))
	c.say(t, `{"class":"subscribe_agent_status","xivo_uuid":%q,"agent_id":3}`, uuidB)
	c.say(t, `{"class":"subscribe_endpoint_status","xivo_uuid":%q,"endpoint_id":21}`, uuidB)
	c.expect(t, fmt.Sprintf(`{"class":"endpoint_status_update","xivo_uuid":%q,"endpoint_id":21,"status":8}`, uuidB))
	b.publish(t.Context(), "status.agent", busMessage{"agent_status_update", uuidB, json.RawMessage(`{"agent_id":3,"status":"logged_in"}`)})
	c.expect(t, fmt.Sprintf(`{"class":"agent_status_update","xivo_uuid":%q,"agent_id":3,"status":"logged_in"}`, uuidB))
}

func TestAnEmptyAnswerIsOpenedByAMessageOfTheOrigin(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	consul.add("dc-a")
	d := newCtidTest(t, uuidA, consul, b, "")
	c := connectTo(t, d)
	c.say(t, subscribe7, uuidB)
	eventually(t, "consul is asked", func() bool { return consul.count("GET /v1/catalog/service/") > 0 })

	address, port := peerCtid(t, uuidB, "available")
	data, err := json.Marshal(remoteService{"xivo-ctid", "id-b", address, port, []string{uuidB, "xivo-ctid"}})
	if err != nil {
		t.Fatal(err)
	}
	// The tags are not looked at: the origin of the message is.
	b.publish(t.Context(), "service.registered.xivo-ctid", busMessage{"service_registered_event", uuidA, data})
	if s, ok, _ := d.tracker.find(t.Context(), uuidB); ok {
		t.Fatalf("a message of origin %s opened %s: %+v", uuidA, uuidB, s)
	}
	b.publish(t.Context(), "service.registered.xivo-ctid", busMessage{"service_registered_event", uuidB, data})
	c.expect(t, update7(uuidB, "available"))
}

func TestAnAnswerCountsForTheUUIDThatItNames(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	clone := peerService(t, uuidA, "available") // still has the original's identity
	clone.ServiceTags = []string{uuidB, "xivo-ctid"}
	consul.add("dc-b", clone)
	d := newCtidTest(t, uuidA, consul, b, "")
	c := connectTo(t, d)
	c.say(t, subscribe7, uuidB)
	eventually(t, "the clone's answer is kept for the original", func() bool {
		users := d.kinds[0]
		users.mu.Lock()
		defer users.mu.Unlock()
		return string(users.statuses[resource{uuidA, 7}]) == `"available"`
	})
	c.say(t, `{"class":"nonsense"}`)
	c.expect(t, `{"class":"error","error":"unknown class \"nonsense\""}`)
	b.publish(t.Context(), "status.user", status7(uuidB, "first that comes"))
	c.expect(t, update7(uuidB, "first that comes"))
}

func TestAMessageThatIsNotAsExpectedEndsTheListener(t *testing.T) {
	d := newCtidTest(t, uuidA, newConsulDouble(t), &busDouble{}, "")
	handle := d.onMessage(t.Context())
	for name, c := range map[string]struct{ key, body string }{
		"no JSON":                       {"status.user", "hello"},
		"no origin":                     {"status.user", `{"name":"user_status_update","data":{"user_id":7,"status":"away"}}`},
		"no user id":                    {"status.user", `{"name":"user_status_update","origin_uuid":"x","data":{"status":"away"}}`},
		"another name":                  {"status.user", `{"name":"other","origin_uuid":"x","data":{"user_id":7,"status":"away"}}`},
		"a registration, no address":    {"service.registered.xivo-ctid", `{"name":"n","origin_uuid":"x","data":{"service_name":"xivo-ctid","service_id":"i","port":1,"tags":[]}}`},
		"a deregistration without id":   {"service.deregistered.xivo-ctid", `{"name":"n","origin_uuid":"x","data":{"service_name":"xivo-ctid"}}`},
		"a registration of any service": {"service.registered.xivo-mesh", `{"name":"n","origin_uuid":"x","data":{}}`},
	} {
		t.Run(name, func(t *testing.T) {
			if err := handle(c.key, []byte(c.body)); !errors.Is(err, errPoison) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestDeregistrationIsForgotten(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	consul.add("dc-b", peerService(t, uuidB, "available"))
	d := newCtidTest(t, uuidA, consul, b, "")
	d.tracker.find(t.Context(), uuidB)
	b.publish(t.Context(), "service.deregistered.xivo-ctid",
		busMessage{"service_deregistered_event", uuidB, json.RawMessage(`{"service_name":"xivo-ctid","service_id":"id-` + uuidB + `","tags":[]}`)})
	if s, ok, _ := d.tracker.find(t.Context(), uuidB); ok {
		t.Errorf("still known: %+v", s)
	}
}

func TestCtidWithoutItsUUIDDoesNotStart(t *testing.T) {
	log, _ := newLog(t)
	err := (&Ctid{Release: xivo1603, Log: log}).Run(t.Context(), func([]net.Addr) { t.Error("it did") })
	if err == nil || !strings.Contains(err.Error(), "XIVO_UUID") {
		t.Errorf("error %v", err)
	}
}

// start runs a ctid as a process would be, with a broker that is not there.
func start(t *testing.T, consul *consulDouble, configure func(*ctidConfig)) (addresses []net.Addr, stop func()) {
	t.Helper()
	return startAs(t, Ctid{Release: xivo1603, UUID: uuidA}, consul, configure)
}

func startAs(t *testing.T, c Ctid, consul *consulDouble, configure func(*ctidConfig)) (addresses []net.Addr, stop func()) {
	t.Helper()
	config := consul.config
	config.RestAPI.HTTP.Listen = "127.0.0.1"
	config.Bus.Host, config.Bus.Port, config.Bus.ExchangeName = "127.0.0.1", 1, "xivo"
	config.ServiceDiscovery.Enabled = true
	config.ServiceDiscovery.AdvertiseAddress = "192.168.1.10"
	config.ServiceDiscovery.AdvertisePort = 9495
	config.ServiceDiscovery.TTLInterval = 30
	config.ServiceDiscovery.RefreshInterval = 0.01
	config.ServiceDiscovery.RetryInterval = 0.01
	if configure != nil {
		configure(&config)
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yml")
	write(t, file, string(text))
	log, _ := newLog(t)
	c.Config, c.CTI, c.Stderr, c.Log = file, "127.0.0.1:0", &bytes.Buffer{}, log
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan []net.Addr, 1), make(chan error, 1)
	go func() { done <- c.Run(ctx, func(a []net.Addr) { up <- a }) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	select {
	case addresses = <-up:
	case err := <-done:
		t.Fatal(err)
	}
	return addresses, stop
}

func TestCtidRegistersKeepsItsTTLAndDeregisters(t *testing.T) {
	consul := newConsulDouble(t)
	consul.registerFails, consul.ttlFails = 2, 2
	_, stop := start(t, consul, nil)
	const pass = "PUT /v1/agent/check/pass/service:"
	eventually(t, "the TTL is refreshed again and again", func() bool { return consul.count(pass) > 4 })
	stop()

	body := consul.bodies["register"]
	id, _ := body["ID"].(string)
	delete(body, "ID")
	want := map[string]any{
		"Name": "xivo-ctid", "Address": "192.168.1.10", "Port": 9495.0,
		"Tags": []any{uuidA, "xivo-ctid"}, "Check": map[string]any{"TTL": "30s"},
	}
	if diff := cmp.Diff(want, body); diff != "" {
		t.Error(diff)
	}
	if n := consul.count("PUT /v1/agent/service/register"); n != 3 {
		t.Errorf("registered %d times: two failed, and a failing TTL is no reason to register again", n)
	}
	if consul.count(pass+id) == 0 || consul.count("PUT /v1/agent/service/deregister/"+id) != 1 || consul.count("PUT /v1/agent/check/deregister/service:"+id) != 1 {
		t.Errorf("service %s: asked %q", id, consul.asked)
	}
}

// discoverUntil registers a ctid, and ends it once what it is told holds.
func discoverUntil(t *testing.T, d *ctid, what string, holds func() bool) remoteService {
	t.Helper()
	s, err := d.service()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.discover(ctx, s); close(done) }()
	eventually(t, what, holds)
	cancel()
	<-done
	return s
}

func TestCtidOf1520LetsConsulCheckIt(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	d := newCtidOf(t, xivo1520, uuidA, consul, b, "")
	d.config.ServiceDiscovery.AdvertiseAddress = "192.168.1.10"
	d.config.ServiceDiscovery.CheckURL = "http://192.168.1.10:9495/0.1/infos"
	d.config.ServiceDiscovery.CheckURLInterval, d.config.ServiceDiscovery.CheckURLTimeout = "300s", "10s"
	d.config.ServiceDiscovery.RefreshInterval = 0.001
	s := discoverUntil(t, d, "announced", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.sent) == 1 })
	want := map[string]any{"HTTP": "http://192.168.1.10:9495/0.1/infos", "Interval": "300s", "Timeout": "10s"}
	if diff := cmp.Diff(want, consul.bodies["register"]["Check"]); diff != "" {
		t.Error(diff)
	}
	if consul.count("PUT /v1/agent/check/pass/") != 0 || consul.count("PUT /v1/agent/service/deregister/"+s.ID) != 1 {
		t.Errorf("asked %q", consul.asked)
	}
}

func TestCtidAnnouncesItsRegistration(t *testing.T) {
	consul, b := newConsulDouble(t), &busDouble{}
	d := newCtidTest(t, uuidA, consul, b, "")
	d.config.ServiceDiscovery.AdvertiseAddress = "192.168.1.10"
	d.config.ServiceDiscovery.AdvertisePort = 9495
	d.config.ServiceDiscovery.RefreshInterval = 3600
	s := discoverUntil(t, d, "registered", func() bool { return consul.count("PUT /v1/agent/check/pass/") == 1 })
	if diff := cmp.Diff([]string{"service.registered.xivo-ctid", "service.deregistered.xivo-ctid"}, b.sent); diff != "" {
		t.Fatal(diff)
	}
	var data map[string]any
	if err := json.Unmarshal(b.messages[0].Data, &data); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"service_name": "xivo-ctid", "service_id": s.ID, "address": "192.168.1.10", "port": 9495.0, "tags": []any{uuidA, "xivo-ctid"}}
	if diff := cmp.Diff(want, data); diff != "" || b.messages[0].OriginUUID != uuidA {
		t.Error(diff, b.messages[0].OriginUUID)
	}
	if again, _ := d.service(); again.ID == s.ID {
		t.Error("the id is a new one at every start")
	}
}

func TestCtidWithDiscoveryOffDoesNotRegister(t *testing.T) {
	consul := newConsulDouble(t)
	addresses, stop := start(t, consul, func(c *ctidConfig) { c.ServiceDiscovery.Enabled = false })
	status, body := get(t, nil, "http://"+addresses[0].String()+"/0.1/infos")
	if status != 200 || body["uuid"] != uuidA {
		t.Errorf("%d %v", status, body)
	}
	stop()
	if n := consul.count("PUT"); n != 0 {
		t.Errorf("%d writes to consul", n)
	}
}

func TestClientsAreDroppedWhenCtidStops(t *testing.T) {
	consul := newConsulDouble(t)
	consul.add("dc-b", peerService(t, uuidB, "available"))
	addresses, stop := start(t, consul, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	var got logged
	ended := make(chan error, 1)
	go func() { ended <- Client{Address: addresses[1].String()}.Watch(ctx, &got, uuidB, 7) }()
	eventually(t, "the first status is printed", func() bool { return strings.HasSuffix(got.String(), "\n") })
	stop()
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "closed the connection") {
		t.Errorf("the client ended with %v", err)
	}
	if lines := strings.TrimSpace(got.String()); !json.Valid([]byte(lines)) || !strings.Contains(lines, "available") {
		t.Errorf("it printed %q", lines)
	}
}

func TestCtidAndTheDatabase(t *testing.T) {
	fresh := servers(t, "16.03")
	t.Run("the identity", func(t *testing.T) {
		dsn := fresh(t)
		execute(t, dsn, "UPDATE infos SET uuid = '"+uuidB+"'")
		for name, c := range map[string]struct {
			release Release
			want    string
		}{
			"15.20 takes the database's":          {xivo1520, uuidB},
			"16.01 does, too":                     {Release{16, 1}, uuidB},
			"16.02 takes that of the environment": {Release{16, 2}, uuidA},
		} {
			addresses, stop := startAs(t, Ctid{Release: c.release, UUID: uuidA, Database: dsn}, newConsulDouble(t), nil)
			if _, body := get(t, nil, "http://"+addresses[0].String()+"/0.1/infos"); body["uuid"] != c.want {
				t.Errorf("%s: it is %v", name, body["uuid"])
			}
			stop()
		}
	})
	t.Run("set and seen", func(t *testing.T) {
		dsn := fresh(t)
		execute(t, dsn, twoUsers)
		b := &busDouble{}
		d := newCtidTest(t, uuidA, newConsulDouble(t), b, database(dsn))
		c := connectTo(t, d)
		c.say(t, `{"class":"set_user_status","user_id":1,"status":"available"}`)
		c.expect(t, `{"class":"set_user_status","user_id":1,"status":"available"}`)
		if diff := cmp.Diff([]string{"status.user"}, b.sent); diff != "" {
			t.Error(diff)
		}
		if m := b.messages[0]; m.Name != "user_status_update" || m.OriginUUID != uuidA || string(m.Data) != `{"status":"available","user_id":1}` {
			t.Errorf("on the bus: %+v", m)
		}
		c.say(t, `{"class":"set_user_status","user_id":99,"status":"available"}`)
		c.expect(t, `{"class":"error","error":"no user 99 here"}`)

		for path, want := range map[string]map[string]any{
			"/0.1/users/1":      {"id": 1.0, "origin_uuid": uuidA, "presence": "available"},
			"/0.1/users/2":      {"id": 2.0, "origin_uuid": uuidA, "presence": "disconnected"},
			"/0.1/endpoints/21": {"id": 21.0, "origin_uuid": uuidA, "status": 0.0},
		} {
			if status, body := get(t, from{"10.9.9.9", d.handler()}, path); status != 200 || !cmp.Equal(want, body) {
				t.Errorf("%s: %d %v", path, status, body)
			}
		}
		for _, path := range []string{"/0.1/users/99", "/0.1/endpoints/1", "/0.1/users/x"} {
			if status, _ := get(t, from{"10.9.9.9", d.handler()}, path); status != 404 {
				t.Errorf("%s: %d, want 404", path, status)
			}
		}
	})
}
