package standin

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// consulDouble is a local agent that knows some datacenters.
type consulDouble struct {
	*httptest.Server
	config ctidConfig // that leads to it

	mu                      sync.Mutex
	catalog                 map[string][]catalogService // by datacenter; in order
	order                   []string
	forbidden               map[string]bool // datacenters that do not know our token
	asked                   []string        // method and URI
	bodies                  map[string]map[string]any
	registerFails, ttlFails int // how many more times
}

func newConsulDouble(t *testing.T) *consulDouble {
	d := &consulDouble{catalog: map[string][]catalogService{}, forbidden: map[string]bool{}, bodies: map[string]map[string]any{}}
	d.Server = httptest.NewTLSServer(http.HandlerFunc(d.serve))
	t.Cleanup(d.Close)
	pinned := filepath.Join(t.TempDir(), "server.crt")
	write(t, pinned, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.Certificate().Raw})))
	_, address, _ := strings.Cut(d.URL, "://")
	host, port, _ := strings.Cut(address, ":")
	d.config.Consul.Scheme, d.config.Consul.Host, d.config.Consul.Token = "https", host, "t0ken"
	fmt.Sscan(port, &d.config.Consul.Port)
	d.config.Consul.Verify = pinned
	return d
}

func (d *consulDouble) serve(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, r.Method+" "+r.RequestURI)
	// Who has no token may read XiVO's services, and that only.
	token, isLookup := r.Header.Get("X-Consul-Token"), strings.HasPrefix(r.URL.Path, "/v1/health/service/xivo-") || strings.HasPrefix(r.URL.Path, "/v1/catalog/service/xivo-") || r.URL.Path == "/v1/catalog/datacenters"
	if isLookup == (token != "") || token != "" && token != "t0ken" {
		http.Error(w, "ACL not found", http.StatusForbidden)
		return
	}
	fails := func(n *int) bool {
		if *n > 0 {
			*n--
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return true
		}
		return false
	}
	switch path := r.URL.Path; {
	case path == "/v1/catalog/datacenters":
		answer(w, 200, d.order)
	case strings.HasPrefix(path, "/v1/catalog/service/xivo-ctid"):
		dc := r.URL.Query().Get("dc")
		if d.forbidden[dc] {
			http.Error(w, "ACL not found", http.StatusForbidden)
			return
		}
		answer(w, 200, append([]catalogService{}, d.catalog[dc]...))
	case strings.HasPrefix(path, "/v1/health/service/xivo-ctid"):
		entries := []map[string]any{}
		for _, s := range d.catalog[r.URL.Query().Get("dc")] {
			entries = append(entries, map[string]any{"Service": map[string]any{
				"ID": s.ServiceID, "Service": s.ServiceName, "Address": s.ServiceAddress, "Port": s.ServicePort, "Tags": s.ServiceTags}})
		}
		answer(w, 200, entries)
	case path == "/v1/agent/service/register":
		if !fails(&d.registerFails) {
			var body map[string]any
			json.NewDecoder(r.Body).Decode(&body)
			d.bodies["register"] = body
		}
	case strings.HasPrefix(path, "/v1/agent/check/pass/"):
		fails(&d.ttlFails)
	case strings.HasPrefix(path, "/v1/agent/"):
	default:
		http.NotFound(w, r)
	}
}

func (d *consulDouble) add(dc string, services ...catalogService) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.catalog[dc]; !ok {
		d.order = append(d.order, dc)
	}
	d.catalog[dc] = append(d.catalog[dc], services...)
}

// count is how many questions began so.
func (d *consulDouble) count(prefix string) (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range d.asked {
		if strings.HasPrefix(a, prefix) {
			n++
		}
	}
	return n
}

func (d *consulDouble) client(t *testing.T, r Release) *consulClient {
	t.Helper()
	c, err := newConsulClient(r, d.config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConsulIsKnownByItsCertificateAlone(t *testing.T) {
	d := newConsulDouble(t)
	if _, err := d.client(t, xivo1603).datacenters(t.Context()); err != nil {
		t.Error(err)
	}
	d.config.Consul.Verify, _ = certificate(t)
	if _, err := d.client(t, xivo1603).datacenters(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("another certificate was taken: %v", err)
	}
	d.config.Consul.Verify = "/nonexistent/server.crt"
	if _, err := newConsulClient(xivo1603, d.config); err == nil {
		t.Error("a missing certificate is an error at start")
	}
}
