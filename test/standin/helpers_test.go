package standin

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const (
	uuidA = "aaaaaaaa-0000-4000-8000-000000000001"
	uuidB = "bbbbbbbb-0000-4000-8000-000000000002"
)

// The releases whose daemons differ, as the tests name them.
var (
	xivo1520 = Release{15, 20}
	xivo1603 = Release{16, 3}
	xivo1616 = Release{16, 16}
)

// logged collects what a daemon logs.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newLog(t *testing.T) (*slog.Logger, *logged) {
	l := &logged{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(l.String())
		}
	})
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug})), l
}

// eventually waits until what it is told holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	const hang = 5 * time.Minute
	for deadline := time.Now().Add(hang); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s: %s", hang, what)
		}
	}
}

// servers makes a function that returns the DSN of a fresh database of an era:
// one PostgreSQL, and a copy of its first database for each call.
func servers(t *testing.T, era string) func(t *testing.T) (dsn string) {
	t.Helper()
	template := server.Postgres(t, schema.SQL(era))
	n := 0
	return func(t *testing.T) string {
		t.Helper()
		n++
		name := fmt.Sprintf("copy%d", n)
		u, err := url.Parse(template)
		if err != nil {
			t.Fatal(err)
		}
		admin := *u
		admin.Path = "/postgres"
		execute(t, admin.String(), "CREATE DATABASE "+name+" TEMPLATE asterisk")
		u.Path = "/" + name
		return u.String()
	}
}

func execute(t *testing.T, dsn string, statements ...string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for _, s := range statements {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

// from lets a handler be asked by an HTTP client from a chosen address.
type from struct {
	address string
	handler http.Handler
}

func (f from) RoundTrip(r *http.Request) (*http.Response, error) {
	in := httptest.NewRequestWithContext(r.Context(), r.Method, r.URL.RequestURI(), nil)
	in.Header = r.Header.Clone()
	in.RemoteAddr = f.address + ":40000"
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, in)
	return w.Result(), nil
}

// get returns the status and, if there is one, the JSON body.
func get(t *testing.T, transport http.RoundTripper, path string) (int, map[string]any) {
	t.Helper()
	u := path
	if strings.HasPrefix(path, "/") {
		u = "http://double" + path
	}
	resp, err := (&http.Client{Transport: transport}).Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body map[string]any
	_ = json.Unmarshal(text, &body)
	return resp.StatusCode, body
}

// certificate writes a self-signed certificate as XiVO 16.03 has: CN=*.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "*"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")
	write(t, certFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	write(t, keyFile, string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})))
	return certFile, keyFile
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
