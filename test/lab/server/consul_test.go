package server_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestOldConsul(t *testing.T) {
	// A Consul of today, as far as tokens go.
	real := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.URL.Query().Get("token") + r.Header.Get("X-Consul-Token")
		if token != "master" {
			http.Error(w, "Permission denied", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "%s %s", r.Method, r.URL.EscapedPath())
	}))
	defer real.Close()
	u, err := url.Parse(real.URL)
	if err != nil {
		t.Fatal(err)
	}
	behind, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	l := httptest.NewUnstartedServer(nil)
	address := l.Listener.Addr().String()
	l.Listener.Close()
	var old server.OldConsul
	old.Serve(t, address, real.TLS.Certificates[0], behind, "master")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}

	for _, c := range []struct {
		name, method, path, header string
		leaderless                 int32
		want                       string
	}{
		{"the token of the URL counts", "PUT", "/v1/kv/xivo/a?token=master", "", 0, "200 PUT /v1/kv/xivo/a"},
		{"that of the header does not", "PUT", "/v1/kv/xivo/a", "master", 0, "403 Permission denied"},
		{"a key is asked for as it was written", "GET", "/v1/kv/a%2Fb%20c?token=master", "", 0, "200 GET /v1/kv/a%2Fb%20c"},
		{"a key that may not be read is not found", "GET", "/v1/kv/xivo/a?token=wrong", "", 0, "404 "},
		{"a list that may not be read is empty", "GET", "/v1/catalog/service/xivo-ctid?token=wrong", "", 0, "200 []"},
		{"so is the map of services", "GET", "/v1/catalog/services", "", 0, "200 {}"},
		{"the agent asks for no token", "GET", "/v1/agent/services", "", 0, "200 GET /v1/agent/services"},
		{"there are no transactions", "PUT", "/v1/txn?token=master", "", 0, "404 404 page not found"},
		{"there is no keyring API", "GET", "/v1/operator/keyring?token=master", "", 0, "404 404 page not found"},
		{"the agent cannot be told to leave", "PUT", "/v1/agent/leave?token=master", "", 0, "404 404 page not found"},
		{"without a leader there is none", "GET", "/v1/status/leader", "", 1, `200 ""`},
		{"and no answer", "GET", "/v1/catalog/nodes?token=master", "", 1, "500 No cluster leader"},
		{"until there is one again", "GET", "/v1/catalog/nodes?token=master", "", 0, "200 GET /v1/catalog/nodes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			old.Leaderless.Store(c.leaderless)
			r, err := http.NewRequest(c.method, "https://"+address+c.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Consul-Token", c.header)
			resp, err := client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprint(resp.StatusCode, " ", strings.TrimSpace(string(body))); got != c.want {
				t.Errorf("%s %s: %q, want %q", c.method, c.path, got, c.want)
			}
		})
	}
}
