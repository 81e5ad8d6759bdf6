package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"
)

const (
	controlTime  = 10 * time.Second
	controlBytes = 16 << 20 // of an answer: 1000 members have less than one
)

// ErrNotRunning is that no service listens at the socket.
var ErrNotRunning = errors.New("overlay: its service does not run: see `systemctl status xivo-overlay`")

// Control serves a running service's Status and Bury to who may use the socket: root.
// It ends with ctx, and takes the place of a socket that nobody listens at any more.
func (s *Service) Control(ctx context.Context, socket string) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o700); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Nobody else may enter it for the moment between listen and chmod.
	was := syscall.Umask(0o077)
	ln, err := net.Listen("unix", socket)
	syscall.Umask(was)
	if err != nil {
		return fmt.Errorf("overlay: open %s: %w", socket, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(s.Status())
	})
	mux.HandleFunc("POST /bury/{uuid}", func(w http.ResponseWriter, r *http.Request) {
		id, err := uuid.Parse(r.PathValue("uuid"))
		if err == nil {
			err = s.Bury(id)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	})
	server := &http.Server{Handler: mux, ReadTimeout: controlTime, WriteTimeout: controlTime}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ln); ctx.Err() == nil {
		return fmt.Errorf("overlay: serve %s: %w", socket, err)
	}
	return nil
}

// Remote is a service of another process, behind its control socket.
type Remote struct{ Socket string }

// Status asks it. ErrNotRunning says that there is none.
func (r Remote) Status(ctx context.Context) (Status, error) {
	var st Status
	raw, err := r.ask(ctx, http.MethodGet, "/status")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(raw, &st); err != nil {
		return st, fmt.Errorf("overlay: read its service's status: %w", err)
	}
	if st.Self.UUID == uuid.Nil {
		return st, errors.New("overlay: its service told nothing of itself")
	}
	return st, nil
}

// Bury is Service.Bury.
func (r Remote) Bury(ctx context.Context, id uuid.UUID) error {
	_, err := r.ask(ctx, http.MethodPost, "/bury/"+id.String())
	return err
}

func (r Remote) ask(ctx context.Context, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://overlay"+path, nil)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", r.Socket)
	}}
	res, err := transport.RoundTrip(req)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, ErrNotRunning
	case err != nil:
		return nil, fmt.Errorf("overlay: ask its service: %w", err)
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, controlBytes))
	if err != nil {
		return nil, fmt.Errorf("overlay: ask its service: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("overlay: its service says: %.300s", raw)
	}
	return raw, nil
}
