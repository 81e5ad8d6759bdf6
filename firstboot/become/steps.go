package become

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

func hasSSH(n *node.Node) engine.Skip {
	if _, err := os.Stat(n.Platform.Path("/etc/ssh")); errors.Is(err, fs.ErrNotExist) {
		return "there is no /etc/ssh"
	}
	return ""
}

// sshHostKeys are made by cloud-init where it runs; a sealed image that boots
// without a data source has none, and ssh must work on it all the same.
func sshHostKeys(n *node.Node) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		keys, err := filepath.Glob(n.Platform.Path("/etc/ssh/ssh_host_*_key"))
		if err != nil || len(keys) > 0 {
			return nil, err
		}
		return []string{"/etc/ssh has no host key"}, nil
	}, func(ctx context.Context) error {
		_, err := platform.Run(ctx, "ssh-keygen", "-A", "-f", n.Platform.Root)
		return err
	})
}

// kvExported makes sure that the KV was exported before anything removes it: by
// the seal, by `run` while Consul is up, or else from the files at rest.
func kvExported(n *node.Node) engine.Resource { return n.KV.UpToDate(n.KV.Now) }

func hostname(n *node.Node, db *pgx.Conn) engine.Resource {
	return identity.Hostname(db, n.Platform, n.Identity().Hostname, "")
}

func uuidInDatabase(n *node.Node, db *pgx.Conn) engine.Resource {
	return identity.UUIDInDatabase(db, n.Identity().UUID)
}

func uuidInFiles(n *node.Node) engine.Resource {
	return identity.UUIDInFiles(n.Platform, n.Identity().UUID)
}

func uuidInManager(n *node.Node) engine.Resource {
	return identity.UUIDInManager(n.Platform, n.Identity().UUID)
}

func addressed(_ context.Context, n *node.Node) (engine.Resource, error) { return n.Addressed() }

// oldKeysRemoved finds nothing on a sealed image; on a copy that was not sealed,
// the keys are the original's.
func oldKeysRemoved(n *node.Node, db *pgx.Conn) engine.Resource {
	return engine.All{
		files.Absent(n.Platform.Root, platform.CertificateFile, platform.CertificateKey, platform.RabbitDataDir+"/.erlang.cookie"),
		identity.NoServiceKeys(db, n.Platform),
	}
}

func serviceKeys(n *node.Node, db *pgx.Conn) engine.Resource {
	return identity.ServiceKeys(db, n.Platform)
}

func certificate(n *node.Node) engine.Resource {
	return identity.Certificate(n.Platform, n.Address())
}

// brokerPlugins is the plugins that the broker starts with. That of a copy would
// go on as the original; settle takes out what it would do that with.
func brokerPlugins(n *node.Node) engine.Resource {
	if n.Identity().Copied {
		return rabbitmq.ManagementOnly(n.Platform)
	}
	return rabbitmq.Plugins(n.Platform)
}

func brokerManagement(n *node.Node) engine.Resource {
	return rabbitmq.ManagementOnLoopback(n.Platform)
}

func consulEmptied(n *node.Node) engine.Resource { return n.KV.NoConsulState() }

func consulTokens(n *node.Node) engine.Resource {
	token, err := n.ConsulToken()
	if err != nil {
		return engine.Broken(err)
	}
	return consul.TokenFiles(n.Platform, token)
}

// kvImported leaves out what only the original may have.
func kvImported(ctx context.Context, n *node.Node) (engine.Resource, error) {
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return nil, err
	}
	if n.Identity().Adopted {
		return n.KV.Restore(c), nil
	}
	return n.KV.Restore(c, kvexport.LiveTokens), nil
}

func exportRetired(n *node.Node) engine.Resource { return n.KV.NoExport() }

func brokerCleaned(_ *node.Node, b *rabbitmq.Client) engine.Resource { return b.NoFederation() }

func brokerName(n *node.Node, b *rabbitmq.Client) engine.Resource {
	return b.ClusterName(n.Identity().Name)
}
