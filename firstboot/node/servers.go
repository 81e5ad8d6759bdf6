package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// brokerWait is how long a broker that was started may take to answer; XiVO is
// down meanwhile in a live run.
const brokerWait = 3 * time.Minute

// Servers are PostgreSQL, Consul and the broker of this machine, each opened at the
// first use. Several steps need the same one: when it is down, only the first waits
// for it, and the others get its error until AskAgain.
type Servers struct {
	// How each is reached.
	OpenDB     func(ctx context.Context) (*pgx.Conn, error)
	OpenConsul func(ctx context.Context) (*consul.Client, error)
	OpenBroker func(ctx context.Context) (*rabbitmq.Client, error)

	platform                    *platform.Platform
	db                          *pgx.Conn
	consul                      *consul.Client
	broker                      *rabbitmq.Client
	dbErr, consulErr, brokerErr error
	brokerRestarted             bool
}

// NewServers are those of a XiVO. Nothing is opened yet.
func NewServers(p *platform.Platform) *Servers {
	return &Servers{
		platform: p,
		OpenDB:   postgres.Connect,
		OpenConsul: func(ctx context.Context) (*consul.Client, error) {
			c, err := consul.Dial(p)
			if err != nil {
				return nil, err
			}
			if err := c.WaitLeader(ctx); err != nil {
				return nil, fmt.Errorf("%w; `journalctl -u consul` or /var/log/syslog may tell why", err)
			}
			return c, nil
		},
		OpenBroker: func(ctx context.Context) (*rabbitmq.Client, error) {
			ctx, cancel := context.WithTimeout(ctx, brokerWait)
			defer cancel()
			b := rabbitmq.Dial()
			return b, b.Wait(ctx)
		},
	}
}

// DB returns the connection to XiVO's database; one that broke is opened again.
func (s *Servers) DB(ctx context.Context) (*pgx.Conn, error) {
	if s.db != nil && !s.db.IsClosed() {
		return s.db, nil
	}
	if s.dbErr == nil {
		s.db, s.dbErr = answered(s.OpenDB(ctx))
	}
	return s.db, s.dbErr
}

// Consul returns the client of the local agent, once it has a leader.
func (s *Servers) Consul(ctx context.Context) (*consul.Client, error) {
	if s.consul == nil && s.consulErr == nil {
		s.consul, s.consulErr = answered(s.OpenConsul(ctx))
	}
	return s.consul, s.consulErr
}

// Broker returns the client of the local broker, once it answers.
func (s *Servers) Broker(ctx context.Context) (*rabbitmq.Client, error) {
	if s.broker == nil && s.brokerErr == nil {
		s.broker, s.brokerErr = answered(s.OpenBroker(ctx))
	}
	return s.broker, s.brokerErr
}

// answered drops the client of a server that did not answer: after AskAgain, it
// would pass for that of one that did.
func answered[C any](client *C, err error) (*C, error) {
	if err != nil {
		return nil, err
	}
	return client, nil
}

// AskAgain forgets which servers were down.
func (s *Servers) AskAgain() { s.dbErr, s.consulErr, s.brokerErr = nil, nil, nil }

// Redial also forgets the clients of Consul and the broker: the files for which
// they were made may have changed, or the servers been restarted.
func (s *Servers) Redial() {
	s.AskAgain()
	s.consul, s.broker = nil, nil
}

// RestartBroker restarts the broker, at most once a process: every message of this
// server goes through it. The error says that it was restarted before, or that ctx
// has ended, after which a later call may.
func (s *Servers) RestartBroker(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.brokerRestarted {
		return errors.New("one did not help; see the broker's log")
	}
	s.brokerRestarted = true
	return s.platform.Init.Restart(ctx, s.platform.Service(platform.Broker))
}

// Close ends the connections.
func (s *Servers) Close() {
	if s.db != nil {
		s.db.Close(context.Background())
		s.db = nil
	}
}

// CheckSchema is an error when the database is that of another version than the
// version file tells: nothing may be written to it then.
func (n *Node) CheckSchema(ctx context.Context) error {
	db, err := n.Servers.DB(ctx)
	if err != nil {
		return err
	}
	return postgres.CheckSchema(ctx, db, n.Platform)
}

// wizardAnswer is how long the database may take to tell of the wizard.
const wizardAnswer = 5 * time.Second

// WizardPassed says whether XiVO's wizard was passed: until then there are no
// contexts, and the services are disabled.
func (n *Node) WizardPassed(ctx context.Context) (bool, error) {
	if !n.Platform.Traits.WizardFlagInDatabase {
		return n.Platform.WizardMarked()
	}
	ctx, cancel := context.WithTimeout(ctx, wizardAnswer)
	defer cancel()
	db, err := n.Servers.DB(ctx)
	if err != nil {
		n.Servers.dbErr = nil // a step gives it more time
		return false, err
	}
	return postgres.WizardPassed(ctx, db)
}
