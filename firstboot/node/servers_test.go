package node_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// Several steps of a pass need the same server: when it is down, only the first
// of them waits for it.
func TestAPassWaitsOnceForAServerThatIsDown(t *testing.T) {
	s := nodetest.Bare(t).Servers
	asked, up := 0, false
	// answer is a server that is down, each time in words of its own.
	answer := func() error {
		asked++
		if up {
			return nil
		}
		return errors.New("nobody answers")
	}
	s.OpenDB = func(context.Context) (*pgx.Conn, error) { return nil, answer() }
	s.OpenConsul = func(context.Context) (*consul.Client, error) { return new(consul.Client), answer() }
	s.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return rabbitmq.Dial(), answer() }
	for _, c := range []struct {
		name string
		open func(context.Context) error
		kept bool // the client of one that answered
	}{
		{"PostgreSQL", func(ctx context.Context) error { _, err := s.DB(ctx); return err }, false},
		{"Consul", func(ctx context.Context) error { _, err := s.Consul(ctx); return err }, true},
		{"RabbitMQ", func(ctx context.Context) error { _, err := s.Broker(ctx); return err }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, up = 0, false
			first := c.open(t.Context())
			if second := c.open(t.Context()); first == nil || second != first || asked != 1 {
				t.Errorf("the second step has %v, the first had %v; it was asked %d times", second, first, asked)
			}
			for i, again := range []func(){s.AskAgain, s.Redial} {
				again()
				if err := c.open(t.Context()); err == nil || err == first || asked != i+2 {
					t.Errorf("the next pass does not ask again: %v, asked %d times", err, asked)
				}
			}
			s.AskAgain()
			asked, up = 0, true
			for range 2 {
				if err := c.open(t.Context()); err != nil {
					t.Error(err)
				}
				s.AskAgain() // forgets no server that is up
			}
			if c.kept && asked != 1 {
				t.Errorf("one that is up was asked %d times", asked)
			}
			if s.Redial(); c.kept && (c.open(t.Context()) != nil || asked != 2) {
				t.Errorf("dialled anew, it was asked %d times", asked)
			}
		})
	}
}

func TestADatabaseConnectionThatBrokeIsOpenedAgain(t *testing.T) {
	dsn := server.Postgres(t, "")
	s := nodetest.Bare(t).Servers
	defer s.Close()
	s.OpenDB = func(context.Context) (*pgx.Conn, error) { return nodetest.Connect(t, dsn), nil }
	first, err := s.DB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.DB(t.Context()); again != first || err != nil {
		t.Errorf("one that works was opened again (%v)", err)
	}
	first.Close(t.Context())
	again, err := s.DB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := nodetest.Ask[int](t, again, "SELECT 1"); got != 1 {
		t.Error(got)
	}
}

// The wizard is asked for with little patience: a step that needs the database has
// more.
func TestWhoAsksForTheWizardDoesNotDecideThatTheDatabaseIsDown(t *testing.T) {
	n := nodetest.Server(t, "16.16", nil)
	asked := 0
	n.Servers.OpenDB = func(context.Context) (*pgx.Conn, error) { asked++; return nil, errors.New("it still starts") }
	if _, err := n.WizardPassed(t.Context()); err == nil {
		t.Error("the wizard was passed, though nobody knows")
	}
	if err := n.CheckSchema(t.Context()); err == nil || asked != 2 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}

// Each restart of a daemon costs its clients their connections.
func TestTheBrokerIsNotRestartedAgainAndAgain(t *testing.T) {
	n := nodetest.Bare(t)
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.Servers.RestartBroker(late); err == nil {
		t.Error("it says that it restarted the broker, without the time to")
	}
	if err := n.Servers.RestartBroker(t.Context()); err != nil {
		t.Error(err)
	}
	if err := n.Servers.RestartBroker(t.Context()); err == nil {
		t.Error("the broker is restarted twice")
	}
	if got := n.Platform.Init.(*nodetest.Manager).Restarted; !slices.Equal(got, []string{"rabbitmq-server"}) {
		t.Errorf("restarted: %v", got)
	}
}
