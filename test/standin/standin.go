// Package standin imitates the XiVO daemons that the mesh has to live with and
// that cannot be installed in the lab: xivo-confd, xivo-dird (with the part of
// xivo-confgend that feeds it), xivo-ctid and the command xivo-service.
//
// They are not XiVO. Each one does what XiVO's own source was read or seen to do
// where a mesh depends on it, the unkind parts included, and nothing else: that
// of 16.03, and where another Release differs, as that one does. They share no
// code with what they test, and say "stand-in" wherever they show: help, logs,
// the HTTP header Server.
package standin

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

// Where a XiVO keeps what the daemons read.
const (
	DefaultDatabase    = "postgresql://asterisk:proformatique@localhost/asterisk"
	DefaultCertificate = "/usr/share/xivo-certs/server.crt"
	DefaultKey         = "/usr/share/xivo-certs/server.key"
	DefaultConfgend    = "/var/cache/xivo-confgend"
	DefaultCtidConfig  = "/etc/xivo-ctid/config.yml"
	DisabledMarker     = "/var/lib/xivo/disabled"
)

// shutdownGrace is what requests under way get when a daemon is told to end.
const shutdownGrace = 2 * time.Second

// database is a DSN. The daemons open a connection for every question: they
// read the database live, and nobody measures them.
type database string

func (d database) do(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, string(d))
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

// uuid reads the identity as XiVO does: the first row, in no order.
func (d database) uuid(ctx context.Context) (uuid string, err error) {
	err = d.do(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SELECT uuid FROM infos LIMIT 1").Scan(&uuid)
	})
	if err != nil {
		return "", fmt.Errorf("read infos.uuid: %w", err)
	}
	return uuid, nil
}

// endpoint is one address that a daemon serves HTTP on.
type endpoint struct {
	address string
	tls     *tls.Config // nil: plain HTTP
	handler http.Handler
}

// serve listens on every endpoint, calls ready with the addresses once all of
// them are open, and serves until the context ends.
func serve(ctx context.Context, name string, ready func([]net.Addr), endpoints ...endpoint) error {
	listeners, err := open(endpoints)
	if err != nil {
		return fmt.Errorf("%s stand-in: %w", name, err)
	}
	servers := make([]*http.Server, len(endpoints))
	failed := make(chan error, len(endpoints))
	var addresses []net.Addr
	for i, e := range endpoints {
		servers[i] = &http.Server{
			Handler:           labelled(name, e.handler),
			ReadHeaderTimeout: 10 * time.Second,
			ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
		}
		go func() { failed <- servers[i].Serve(listeners[i]) }()
		addresses = append(addresses, listeners[i].Addr())
	}
	ready(addresses)

	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s stand-in: %w", name, err)
	}
	return nil
}

// open listens on all endpoints or on none.
func open(endpoints []endpoint) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, e := range endpoints {
		l, err := listen(e.address)
		if err != nil {
			for _, l := range listeners {
				l.Close()
			}
			return nil, err
		}
		if e.tls != nil {
			l = tls.NewListener(l, e.tls)
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// listen is for IPv4 alone, as XiVO's daemons are.
func listen(address string) (net.Listener, error) { return net.Listen("tcp4", address) }

// labelled makes every answer say who gave it.
func labelled(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Server", name+" stand-in")
		next.ServeHTTP(w, r)
	})
}

func serverTLS(certificate, key string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, nil
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// refuse answers in the form of XiVO's own errors.
func refuse(w http.ResponseWriter, status int, reason string) {
	answer(w, status, map[string]any{
		"reason":      []string{reason},
		"timestamp":   []int64{time.Now().Unix()},
		"status_code": status,
	})
}

// NotifyReady tells systemd that a Type=notify service is up. Without systemd
// it does nothing.
func NotifyReady() error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell systemd that we are ready: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("tell systemd that we are ready: %w", err)
	}
	return nil
}
