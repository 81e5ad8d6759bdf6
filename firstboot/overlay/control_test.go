package overlay

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// controlled is a service that answers at a socket.
func controlled(t *testing.T, socket string) *Service {
	t.Helper()
	s, _ := answering(t)
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Control(ctx, socket); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := (Remote{socket}).Status(t.Context()); err == nil {
			return s
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func TestAServiceIsAskedAtItsSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "run", "overlay.sock")
	r := Remote{socket}
	if _, err := r.Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("where no service runs: %v", err)
	}
	s := controlled(t, socket)
	for _, name := range []string{socket, filepath.Dir(socket)} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("others than root may use %s: %v, %v", name, info.Mode(), err)
		}
	}
	known, _ := node(t, "known")
	check(t, errOf(s.book.meet(known)))
	st, err := r.Status(t.Context())
	check(t, err)
	if st.Self.UUID != s.UUID || len(st.Peers) != 1 || st.Peers[0].Host != "known" || st.Peers[0].Handshake >= 0 {
		t.Errorf("it tells %+v", st)
	}

	if err := r.Bury(t.Context(), uuid.New()); err == nil || !strings.Contains(err.Error(), "is no member") {
		t.Errorf("to bury one that nobody knows: %v", err)
	}
	check(t, r.Bury(t.Context(), known.UUID))
	if s.knows(known) {
		t.Error("the member that was buried is still one")
	}
}

// One that was killed leaves its socket behind.
func TestASocketThatWasLeftIsNoServiceAndIsReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "overlay.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	check(t, err)
	ln.SetUnlinkOnClose(false)
	check(t, ln.Close())
	if _, err := (Remote{socket}).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("where one was killed: %v", err)
	}
	controlled(t, socket)
}
