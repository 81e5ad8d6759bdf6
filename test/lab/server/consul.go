package server

import (
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// OldConsul stands in front of the HTTPS API of a real Consul and gives it the
// habits of those that XiVO came with, 0.5.2 up to 0.8.3, where they are unkind
// to a client of today. See docs/xivo/consul.md, The API of old ones:
//
//   - A token counts as `?token=` only; 0.5.2 does not read the header with
//     which Consul's own API package sends it.
//   - The endpoints of the agent ask for no token: the ACLs that guard them came
//     with 0.8, and XiVO leaves them off (acl_enforce_version_8).
//   - A list from which ACLs filtered everything is an empty list, and a key
//     that may not be read is not found. Neither is an error.
//   - What later releases added is not there: /v1/txn (0.7), and from 0.7.2 on
//     /v1/agent/leave and all of /v1/operator.
type OldConsul struct {
	// Leaderless is how many more requests are answered as by a server that has
	// no leader.
	Leaderless atomic.Int32
}

// later are the endpoints that the oldest ones do not have.
var later = []string{"/v1/txn", "/v1/operator/", "/v1/agent/leave", "/v1/agent/reload", "/v1/snapshot"}

// Serve answers at an address of loopback until the test or stop ends it, for
// the Consul at the port behind it. The agent's own endpoints get its master
// token, as if it asked for none.
func (o *OldConsul) Serve(t testing.TB, listen string, certificate tls.Certificate, behind int, master string) (stop func()) {
	t.Helper()
	l, err := tls.Listen("tcp", listen, &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	real := &url.URL{Scheme: "https", Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(behind))}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			// Not SetURL, which would clean what the client wrote.
			r.Out.URL.Scheme, r.Out.URL.Host = real.Scheme, real.Host
			r.Out.Header.Del("X-Consul-Token")
			r.Out.Header.Del("Authorization")
			if strings.HasPrefix(r.In.URL.Path, "/v1/agent/") {
				query := r.Out.URL.Query()
				query.Set("token", master)
				r.Out.URL.RawQuery = query.Encode()
			}
		},
		ModifyResponse: filtered,
		Transport:      &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, path := range later {
			if strings.HasPrefix(r.URL.Path, path) {
				http.NotFound(w, r)
				return
			}
		}
		if o.Leaderless.Add(-1) >= 0 {
			if r.URL.Path == "/v1/status/leader" {
				io.WriteString(w, `""`)
				return
			}
			http.Error(w, "No cluster leader", http.StatusInternalServerError)
			return
		}
		proxy.ServeHTTP(w, r)
	}), ErrorLog: log.New(io.Discard, "", 0)} // clients may refuse its certificate
	go s.Serve(l)
	stop = func() { s.Close() }
	t.Cleanup(stop)
	return stop
}

// filtered makes of a refusal to read what an old one says instead.
func filtered(r *http.Response) error {
	path := r.Request.URL.Path
	if r.StatusCode != http.StatusForbidden || r.Request.Method != http.MethodGet {
		return nil
	}
	r.Body.Close()
	body := "[]"
	r.StatusCode = http.StatusOK
	switch {
	case strings.HasPrefix(path, "/v1/kv/"):
		r.StatusCode, body = http.StatusNotFound, ""
	case path == "/v1/catalog/services":
		body = "{}"
	}
	r.Status = strconv.Itoa(r.StatusCode) + " " + http.StatusText(r.StatusCode)
	r.Header.Set("Content-Length", strconv.Itoa(len(body)))
	r.ContentLength = int64(len(body))
	r.Body = io.NopCloser(strings.NewReader(body))
	return nil
}
