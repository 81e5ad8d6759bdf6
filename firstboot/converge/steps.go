package converge

import (
	"context"
	"errors"
	"io/fs"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// How the resources of the steps are opened.

func plain(open func(*Pass) engine.Resource) func(context.Context, *Pass) (engine.Resource, error) {
	return func(_ context.Context, p *Pass) (engine.Resource, error) { return open(p), nil }
}

func withDB(open func(*Pass, *pgx.Conn) engine.Resource) func(context.Context, *Pass) (engine.Resource, error) {
	return func(ctx context.Context, p *Pass) (engine.Resource, error) {
		db, err := p.Node.Servers.DB(ctx)
		if err != nil {
			return nil, err
		}
		return open(p, db), nil
	}
}

func withConsul(open func(*Pass, *consul.Client) engine.Resource) func(context.Context, *Pass) (engine.Resource, error) {
	return func(ctx context.Context, p *Pass) (engine.Resource, error) {
		c, err := p.Node.Servers.Consul(ctx)
		if err != nil {
			return nil, err
		}
		return open(p, c), nil
	}
}

func withBroker(open func(*Pass, *rabbitmq.Client) engine.Resource) func(context.Context, *Pass) (engine.Resource, error) {
	return func(ctx context.Context, p *Pass) (engine.Resource, error) {
		b, err := p.Node.Servers.Broker(ctx)
		if err != nil {
			return nil, err
		}
		return open(p, b), nil
	}
}

// looksAgain is a resource whose change makes the pass look once more.
func (p *Pass) looksAgain(r engine.Resource) engine.Resource {
	return engine.New(r.Diff, func(ctx context.Context) error {
		p.lookAgain = true
		return r.Apply(ctx)
	})
}

func documentKept(p *Pass) engine.Resource {
	want := string(cloudinit.UserData(p.View.Document))
	return engine.New(func(context.Context) ([]string, error) {
		have, err := limit.ReadFile(p.Node.Platform.Path(node.DocumentFile), limit.File)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		var diff []string
		if string(have) != want {
			diff = append(diff, node.DocumentFile+" is not the document in force")
		}
		if !p.Node.RootKept() {
			diff = append(diff, node.RootFile+" is not of the document's secret")
		}
		return diff, nil
	}, func(context.Context) error { return p.Node.KeepDocument() })
}

func anonymousServices(_ *Pass, c *consul.Client) engine.Resource { return c.AnonymousServices() }

func addressed(_ context.Context, p *Pass) (engine.Resource, error) { return p.Node.Addressed() }

func firewall(p *Pass) engine.Resource { return p.Node.Firewall() }

func account(p *Pass, db *pgx.Conn) engine.Resource {
	c := p.Node.Credentials()
	return directory.Account(db, p.Node.Platform, c.Account(), c.DirectoryPassword())
}

func federationAccount(p *Pass, b *rabbitmq.Client) engine.Resource {
	c := p.Node.Credentials()
	return b.FederationUser(c.Account(), c.BrokerPassword())
}

func federation(p *Pass, b *rabbitmq.Client) engine.Resource {
	return p.looksAgain(p.Node.Federation(b))
}

func policy(_ *Pass, b *rabbitmq.Client) engine.Resource { return b.Policy() }

func ctidConfig(p *Pass) engine.Resource { return p.Node.CtidConfig() }
