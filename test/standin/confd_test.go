package standin

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"net/http"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const twoUsers = `INSERT INTO userfeatures (uuid, firstname, lastname, exten, mobile_phone_number, context, line_id, email) VALUES
	('11111111-0000-4000-8000-000000000001', 'Alice', 'Martin', '1001', '0601', 'default', 21, 'alice@a.example'),
	('11111111-0000-4000-8000-000000000002', 'Bob', 'Durand', '1002', NULL, 'sales', NULL, NULL)`

func TestConfd(t *testing.T) {
	fresh := servers(t, "16.03")
	confd := func(t *testing.T, statements ...string) (string, http.Handler) {
		dsn := fresh(t)
		execute(t, dsn, statements...)
		log, _ := newLog(t)
		return dsn, (&Confd{Release: xivo1603, Database: dsn, Log: log}).Handler("http")
	}

	t.Run("infos is the database's uuid, read every time", func(t *testing.T) {
		t.Setenv("XIVO_UUID", uuidB)
		dsn, h := confd(t, "UPDATE infos SET uuid = '"+uuidA+"'")
		for _, want := range []string{uuidA, uuidB} {
			execute(t, dsn, "UPDATE infos SET uuid = '"+want+"'")
			if _, body := get(t, from{"127.0.0.1", h}, "/1.1/infos"); body["uuid"] != want {
				t.Errorf("uuid %v, want %s", body["uuid"], want)
			}
		}
	})

	t.Run("who gets in", func(t *testing.T) {
		_, h := confd(t, `INSERT INTO accesswebservice (name, login, passwd, host, disable, acl) VALUES
			('by-login', 'mesh', 's3cret', NULL, 0, '{}'),
			('off-login', 'gone', 's3cret', NULL, 1, '{}'),
			('hashed', 'hashed', md5('s3cret'), NULL, 0, '{}'),
			('no-password', 'empty', NULL, NULL, 0, '{}'),
			('by-host', NULL, NULL, '10.0.0.5', 0, '{}'),
			('by-subnet', NULL, NULL, '10.1.0.0/16', 0, '{}'),
			('off-host', NULL, NULL, '10.0.0.6', 1, '{}'),
			('by-nothing', NULL, NULL, '', 0, '{}')`)
		for name, c := range map[string]struct {
			address, login, password string
			want                     int
		}{
			"loopback is free":                      {"127.0.0.1", "", "", 200},
			"another loopback address is not":       {"127.0.0.2", "", "", 401},
			"an equal host is free":                 {"10.0.0.5", "", "", 200},
			"an address in a subnet is not":         {"10.1.2.3", "", "", 401},
			"a disabled host is not":                {"10.0.0.6", "", "", 401},
			"login and password, with an empty acl": {"10.9.9.9", "mesh", "s3cret", 200},
			"a wrong password":                      {"10.9.9.9", "mesh", "other", 401},
			"a disabled login":                      {"10.9.9.9", "gone", "s3cret", 401},
			"a password stored as a hash":           {"10.9.9.9", "hashed", "s3cret", 401},
			"a login without a password":            {"10.9.9.9", "empty", "", 401},
			"nothing":                               {"10.9.9.9", "", "", 401},
		} {
			t.Run(name, func(t *testing.T) {
				var transport http.RoundTripper = from{c.address, h}
				if c.login != "" {
					transport = &digestTransport{c.login, c.password, transport}
				}
				if got, _ := get(t, transport, "/1.1/infos"); got != c.want {
					t.Errorf("status %d, want %d", got, c.want)
				}
			})
		}
	})

	t.Run("loopback gets in", func(t *testing.T) {
		for name, c := range map[string]struct {
			release Release
			scheme  string
			want    int
		}{
			"over HTTP":                   {xivo1603, "http", 200},
			"over HTTPS":                  {xivo1603, "https", 200},
			"over HTTPS in 16.15":         {Release{16, 15}, "https", 200},
			"over HTTPS, not since 16.16": {xivo1616, "https", 401},
			"over HTTP in 16.16":          {xivo1616, "http", 200},
		} {
			log, _ := newLog(t)
			h := (&Confd{Release: c.release, Database: fresh(t), Log: log}).Handler(c.scheme)
			if got, _ := get(t, from{"127.0.0.1", h}, "/1.1/infos"); got != c.want {
				t.Errorf("%s: status %d, want %d", name, got, c.want)
			}
		}
	})

	t.Run("users of 15.20 have neither uuid nor email", func(t *testing.T) {
		dsn := fresh(t)
		execute(t, dsn, twoUsers)
		log, _ := newLog(t)
		h := (&Confd{Release: xivo1520, Database: dsn, Log: log}).Handler("https")
		for search, want := range map[string]float64{"alice": 1, "a.example": 0} {
			_, body := get(t, from{"127.0.0.1", h}, "/1.1/users?view=directory&search="+search)
			if body["total"] != want {
				t.Errorf("search for %q: %v results, want %v", search, body["total"], want)
			}
			for _, item := range body["items"].([]any) {
				alice := item.(map[string]any)
				if _, ok := alice["uuid"]; ok || alice["id"] != 1.0 || alice["exten"] != "1001" {
					t.Errorf("%v", alice)
				}
			}
		}
	})

	t.Run("users", func(t *testing.T) {
		_, h := confd(t, twoUsers)
		names := func(query string) (names []string) {
			_, body := get(t, from{"127.0.0.1", h}, "/1.1/users?view=directory"+query)
			items := body["items"].([]any)
			if int(body["total"].(float64)) != len(items) {
				t.Errorf("total %v of %d items", body["total"], len(items))
			}
			for _, i := range items {
				names = append(names, i.(map[string]any)["firstname"].(string))
			}
			return names
		}
		for query, want := range map[string][]string{
			"":                          {"Alice", "Bob"},
			"&search=MARTIN":            {"Alice"},
			"&search=alice%20martin":    {"Alice"},
			"&search=1002":              {"Bob"},
			"&search=zzz":               nil,
			"&context=sales":            {"Bob"},
			"&context=sales&search=ali": nil,
		} {
			if diff := cmp.Diff(want, names(query)); diff != "" {
				t.Errorf("%q: %s", query, diff)
			}
		}

		_, body := get(t, from{"127.0.0.1", h}, "/1.1/users?view=directory&search=bob")
		bob := body["items"].([]any)[0].(map[string]any)
		want := []string{"agent_id", "context", "description", "email", "exten", "firstname", "id", "lastname", "line_id",
			"mobile_phone_number", "userfield", "uuid", "voicemail_number"}
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(bob))); diff != "" {
			t.Errorf("fields: %s", diff)
		}
		if bob["line_id"] != nil || bob["email"] != nil {
			t.Errorf("what is not there is null: %v", bob)
		}
	})

	t.Run("listens with and without TLS", func(t *testing.T) {
		c := &Confd{Release: xivo1603, Database: fresh(t), HTTPS: "127.0.0.1:0", HTTP: "127.0.0.1:0"}
		c.Certificate, c.Key = certificate(t)
		c.Log, _ = newLog(t)
		ctx, cancel := context.WithCancel(t.Context())
		up, done := make(chan []net.Addr, 1), make(chan error, 1)
		go func() { done <- c.Run(ctx, func(a []net.Addr) { up <- a }) }()
		addresses := <-up
		insecure := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		for i, scheme := range []string{"https://", "http://"} {
			resp, err := (&http.Client{Transport: insecure}).Get(scheme + addresses[i].String() + "/1.1/infos")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := resp.Header.Get("Server"); got != "xivo-confd stand-in" {
				t.Errorf("%s Server: %q", scheme, got)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
