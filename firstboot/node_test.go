package firstboot

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Several steps of a pass need the same server: when it is down, only the first
// of them waits for it.
func TestAPassWaitsOnceForAServerThatIsDown(t *testing.T) {
	n := &Node{Platform: &platform.Platform{Root: t.TempDir()}, Log: slog.New(slog.DiscardHandler)}
	for name, open := range map[string]func(context.Context) error{
		"PostgreSQL": func(ctx context.Context) error { _, err := n.DB(ctx); return err },
		"RabbitMQ":   func(ctx context.Context) error { _, err := n.Broker(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			n.reset()
			short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			first := open(short)
			if first == nil {
				t.Skip("there is one on this machine")
			}
			// Without an end of its own: it would wait for as long as the test may.
			if second := open(t.Context()); second != first {
				t.Errorf("the second step has %v, the first had %v", second, first)
			}
			n.reset()
			again, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := open(again); err == first {
				t.Error("the next pass does not ask again")
			}
		})
	}
}

func TestANodeWhoseAddressIsGoneIsTold(t *testing.T) {
	n := &Node{Journal: &Journal{Identity: Identity{Advertise: "192.0.2.1"}}}
	n.noticeMoved(map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "eth0"})
	if len(n.notices) > 0 {
		t.Errorf("with its address in place: %v", n.notices)
	}
	n.noticeMoved(map[netip.Addr]string{netip.MustParseAddr("192.0.2.7"): "eth0"})
	if len(n.notices) != 1 || !strings.Contains(n.notices[0], "192.0.2.1 is on no interface") {
		t.Errorf("with another one: %v", n.notices)
	}
}

// Each restart of a daemon costs its clients their connections.
func TestADaemonIsNotRestartedAgainAndAgain(t *testing.T) {
	init := &manager{}
	p := &platform.Platform{Root: t.TempDir(), Init: init}
	n := &Node{Platform: p, Log: slog.New(slog.DiscardHandler)}
	read := func() Resource {
		return rereads(n, "xivo-dird", "sources", []string{"a source"}, func(m *marks) *string { return &m.Directories })
	}
	// The state cannot be written, as on a full disk.
	if err := os.MkdirAll(p.Path(filepath.Dir(platform.StateDir)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path(platform.StateDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := ensure(t.Context(), read()); err == nil {
			t.Error("it is not told that the state cannot be written")
		}
	}
	if len(init.restarted) > 0 {
		t.Errorf("restarted: %v", init.restarted)
	}
	if err := errors.Join(os.Remove(p.Path(platform.StateDir)), os.Mkdir(p.Path(platform.StateDir), 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := ensure(t.Context(), read()); err != nil {
			t.Error(err)
		}
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.restartBroker(late); err == nil {
		t.Error("it says that it restarted the broker, without the time to")
	}
	if err := n.restartBroker(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.restartBroker(t.Context()); err == nil {
		t.Error("the broker is restarted twice")
	}
	if want := []string{"xivo-dird", "rabbitmq-server"}; !slices.Equal(init.restarted, want) {
		t.Errorf("restarted: %v, want %v", init.restarted, want)
	}
}
