package sealing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// absent opens the absence of files.
func absent(patterns ...string) func(context.Context, *node.Node) (engine.Resource, error) {
	return node.Plain(func(n *node.Node) engine.Resource { return files.Absent(n.Platform.Root, patterns...) })
}

// kvExported exports from Consul where it runs, else from its files. An export of a
// seal that failed is replaced, for the server ran on; that of an image that was
// sealed before stays.
func kvExported(n *node.Node) engine.Resource {
	return n.KV.UpToDate(func(ctx context.Context) error {
		if err := n.MakeStateDir(); err != nil {
			return err
		}
		if err := checkOneKV(ctx, n); err != nil {
			return err
		}
		return n.KV.Now(ctx)
	})
}

// checkOneKV is an error where a seal was cut off after it had emptied Consul,
// which ran since: the export and Consul each have a part.
func checkOneKV(ctx context.Context, n *node.Node) error {
	if _, err := os.Stat(n.Platform.Path(kvexport.File)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	original, err := consul.TokenFiles(n.Platform, placeholderToken).Diff(ctx)
	if err != nil || len(original) > 0 {
		return err
	}
	return fmt.Errorf("%s is what Consul held before a seal emptied it, and Consul ran since: to seal with that file, stop Consul and remove %s/raft; to seal with what Consul holds now, remove the file", kvexport.File, platform.ConsulDataDir)
}

func directoryRemoved(_ *node.Node, db *pgx.Conn) engine.Resource { return directory.NoMeshRows(db) }

func uuidInDatabase(_ *node.Node, db *pgx.Conn) engine.Resource {
	return identity.UUIDInDatabase(db, placeholderUUID)
}

func serviceKeysRemoved(n *node.Node, db *pgx.Conn) engine.Resource {
	return identity.NoServiceKeys(db, n.Platform)
}

func brokerPlugins(n *node.Node) engine.Resource { return rabbitmq.Plugins(n.Platform) }

func brokerManagement(n *node.Node) engine.Resource { return rabbitmq.ManagementOnLoopback(n.Platform) }

func federationRemoved(b *rabbitmq.Client) engine.Resource { return b.NoFederation() }

func brokerNameRemoved(b *rabbitmq.Client) engine.Resource { return b.ClusterName(placeholderName) }

// A broker stops and starts within seconds, and in minutes where the machine is
// emulated.
const brokerStart = 10 * time.Minute

// withBroker opens a resource on the broker. It restarts one whose management is
// not up yet: XiVO leaves it off, and federation's state can be read and removed
// through it only.
func withBroker(open func(*rabbitmq.Client) engine.Resource) func(context.Context, *node.Node) (engine.Resource, error) {
	return func(ctx context.Context, n *node.Node) (engine.Resource, error) {
		probe, cancelProbe := context.WithTimeout(ctx, 2*time.Second)
		defer cancelProbe()
		if b, err := n.Servers.Broker(probe); err == nil {
			return open(b), nil
		}
		if err := n.Platform.Init.Restart(ctx, n.Platform.Service(platform.Broker)); err != nil {
			return nil, err
		}
		n.Servers.Redial()
		b, err := n.Servers.Broker(ctx)
		if err != nil {
			return nil, err
		}
		return open(b), nil
	}
}

func brokerRewritten(ctx context.Context, n *node.Node) (engine.Resource, error) {
	return withBroker(func(*rabbitmq.Client) engine.Resource {
		return rabbitmq.Rewritten(n.Platform.Path(platform.RabbitDataDir, "mnesia"), rabbitmq.LocalEval)
	})(ctx, n)
}

func uuidInFiles(n *node.Node) engine.Resource {
	return identity.UUIDInFiles(n.Platform, placeholderUUID)
}

func uuidInManager(n *node.Node) engine.Resource {
	return identity.UUIDInManager(n.Platform, placeholderUUID)
}

// watchStopped: the watch would put back what the seal removes.
func watchStopped(n *node.Node) engine.Resource { return stopped(n, "xivo-mesh") }

// servicesStopped also stops both brokers, which XiVO's own command leaves running.
func servicesStopped(n *node.Node) engine.Resource {
	brokers := []string{n.Platform.Service(platform.Consul), n.Platform.Service(platform.Broker)}
	daemons := []string{n.Platform.Service(platform.Ctid), n.Platform.Service(platform.Dird), n.Platform.Service(platform.Confd)}
	all := stopped(n, append(daemons, brokers...)...)
	return engine.New(all.Diff, func(ctx context.Context) error {
		if _, err := platform.Run(ctx, n.Platform.Traits.ServiceCommand, "stop"); err != nil {
			return err
		}
		n.Servers.Redial()
		return stopped(n, brokers...).Apply(ctx)
	})
}

// stopped is none of the services running.
func stopped(n *node.Node, services ...string) engine.Resource {
	return engine.New(func(ctx context.Context) ([]string, error) {
		var up []string
		for _, s := range services {
			active, err := n.Platform.Init.Active(ctx, s)
			if err != nil {
				return nil, err
			}
			if active {
				up = append(up, s+" runs")
			}
		}
		return up, nil
	}, func(ctx context.Context) error {
		var errs []error
		for _, s := range services {
			errs = append(errs, n.Platform.Init.Stop(ctx, s))
		}
		return errors.Join(errs...)
	})
}

func consulEmptied(n *node.Node) engine.Resource { return n.KV.NoConsulState() }

func consulToken(n *node.Node) engine.Resource {
	return consul.TokenFiles(n.Platform, placeholderToken)
}

// machineID empties /etc/machine-id; an absent one would make systemd run its
// first-boot presets. D-Bus's is a link to it, or goes.
func machineID(_ context.Context, n *node.Node) (engine.Resource, error) {
	rs := engine.All{files.Empty(n.Platform.Root, "/etc/machine-id")}
	if st, err := os.Lstat(n.Platform.Path("/var/lib/dbus/machine-id")); err == nil && st.Mode().IsRegular() {
		rs = append(rs, files.Absent(n.Platform.Root, "/var/lib/dbus/machine-id"))
	}
	return rs, nil
}

// randomSeed also stops the unit that writes a seed when it is stopped: a machine
// that is switched off as it should be would have one again.
func randomSeed(n *node.Node) engine.Resource {
	const unit, seed = "systemd-random-seed", "/var/lib/systemd/random-seed"
	writer, seeds := stopped(n, unit), files.Absent(n.Platform.Root, seed, "/var/lib/urandom/random-seed")
	return engine.New(func(ctx context.Context) ([]string, error) {
		found, err := seeds.Diff(ctx)
		if err != nil {
			return nil, err
		}
		up, err := writer.Diff(ctx)
		if len(up) > 0 && !slices.Contains(found, seed) {
			found = append(found, seed+" will be written at shutdown")
		}
		return found, err
	}, func(ctx context.Context) error { return errors.Join(writer.Apply(ctx), seeds.Apply(ctx)) })
}

// nodeState removes all of ours but what a clone needs: a run that was killed
// leaves more than it ever names, a copy of the KV among it.
func nodeState(n *node.Node) engine.Resource {
	needed := []string{kvexport.File, node.ManifestFile, node.LockFile}
	return files.AbsentBut(n.Platform.Root, needed, platform.StateDir+"/*", node.DocumentHint)
}

func logs(n *node.Node) engine.Resource {
	journals := counted("journals", noJournals(n))
	return engine.All{journals, files.Absent(n.Platform.Root, "/var/backups/xivo/*"), files.NoLogs(n.Platform.Root, "/var/log")}
}

// noJournals also has journald go on in memory: what it has open on the disk would be
// freed when the machine is switched off, as it is.
func noJournals(n *node.Node) engine.Resource {
	absent := files.Absent(n.Platform.Root, "/var/log/journal/*")
	return engine.New(absent.Diff, func(ctx context.Context) error {
		if n.Platform.HasSystemd() {
			// journald writes to the disk where this file is there.
			err := files.Absent(n.Platform.Root, "/run/systemd/journal/flushed").Apply(ctx)
			if err := errors.Join(err, n.Platform.Init.Restart(ctx, "systemd-journald")); err != nil {
				return err
			}
		}
		return absent.Apply(ctx)
	})
}

// temporaryFiles leaves the folders that systemd made for services that run.
func temporaryFiles(n *node.Node) engine.Resource {
	var patterns, private []string
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		patterns = append(patterns, dir+"/*", dir+"/systemd-private-*/tmp/*")
		found, _ := filepath.Glob(n.Platform.Path(dir, "systemd-private-*"))
		for _, name := range found {
			private = append(private, filepath.Join(dir, filepath.Base(name)))
		}
	}
	return counted("temporary files", files.AbsentBut(n.Platform.Root, private, patterns...))
}

// counted is a resource that tells only how much differs: what it finds has names
// that are part of an identity, such as the machine id of a journal's folder.
func counted(what string, r engine.Resource) engine.Resource {
	return engine.New(func(ctx context.Context) ([]string, error) {
		found, err := r.Diff(ctx)
		if len(found) == 0 {
			return nil, err
		}
		return []string{fmt.Sprintf("%s (%d)", what, len(found))}, err
	}, r.Apply)
}
