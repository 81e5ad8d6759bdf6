package firstboot

import (
	"context"
	"log/slog"
	"net/netip"
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
