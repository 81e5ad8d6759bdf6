package firstboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
)

// Decide says what becomes of this node's identity, and why.
func (n *Node) Decide(confirmed bool) (Action, string) {
	return Decide(Found{
		Sealed:   n.sealed(),
		Journal:  n.Journal,
		Instance: n.Instance,
		Document: n.Config,
		// Another process may have taken it since it was read.
		Late:      n.late != nil && n.Identity().NoDocument,
		Confirmed: confirmed,
	})
}

const (
	consulReset = "become.consul-state"
	// consulGone is stamped right before the first thing of Consul's state is
	// removed, from when on only the export has the KV, and is done after the last.
	consulGone = "become.consul-gone"
)

// Begin takes the decision on the identity and writes it to the journal. It
// says what was decided, and why. Nothing but the journal is changed.
func (n *Node) Begin(ctx context.Context, confirmed bool) (Action, string, error) {
	action, why, err := n.prepare(ctx, confirmed)
	if err != nil {
		return action, why, err
	}
	switch action {
	case Resume, Become, Adopt:
		// What any step cannot even read is told while all is as it was.
		if _, err := n.Plan(ctx, BecomePhase); err != nil {
			return action, why, err
		}
	}
	switch action {
	case Resume:
		// Consul may have run since the become was cut off, and hold what the export
		// does not.
		if err := n.Journal.redo(BecomePhase.Name + "." + kvExport); err != nil {
			return action, why, err
		}
		return action, why, n.Journal.redo(consulReset)
	case Become, Adopt:
		if err := os.MkdirAll(n.Platform.Path(platform.StateDir), 0o700); err != nil {
			return action, why, err
		}
		if err := n.dropMeshState(); err != nil {
			return action, why, err
		}
		// Before the journal: whoever resumes from it needs the document.
		if err := n.keepDocument(); err != nil {
			return action, why, err
		}
		return action, why, n.Journal.save()
	}
	return action, why, nil
}

// prepare takes the decision on the identity, which is in the journal of this
// process then. Nothing is written.
func (n *Node) prepare(ctx context.Context, confirmed bool) (Action, string, error) {
	action, why := n.Decide(confirmed)
	switch action {
	case Resume:
		if n.Config == nil {
			return action, why, fmt.Errorf("the document that this node began with cannot be read: %w", n.DocumentErr)
		}
		return action, why, nil
	case Become, Adopt:
	default:
		return action, why, nil
	}
	if n.DocumentErr != nil {
		return action, why, n.DocumentErr
	}
	if n.late != nil {
		n.Config, n.late = n.late, nil
	}
	if err := n.checkSchema(ctx); err != nil {
		return action, why, err
	}
	if n.Journal == nil {
		if err := n.verifySeal(); err != nil {
			return action, why, err
		}
	}
	if n.Config == nil {
		// A sealed image without a document must not run as the original did.
		n.Config = cloudinit.Alone()
		why += ", without a document: it will be alone"
	}
	id, err := n.decideIdentity(ctx, action)
	if err != nil {
		return action, why, err
	}
	was := n.Journal
	id.NoDocument = n.noDocument != nil && (was == nil || was.Identity.NoDocument)
	n.Journal = newJournal(n.Platform.Path(journalFile), n.Instance, id)
	if was != nil && was.begun(consulGone) && !was.Done("settle.kv-retire") {
		// A copy of a node that was cut off has the KV in the export only, too.
		n.Journal.Steps[consulGone] = was.Steps[consulGone]
	}
	return action, why, nil
}

// Same says that this machine is the one that became, whatever cloud-init or the
// hardware call it now: a VM that was moved. Its identity stays.
func (n *Node) Same() error {
	if n.Instance.ID != "" {
		n.Journal.Instance.ID = n.Instance.ID
	}
	if n.Instance.Product != "" {
		n.Journal.Instance.Product = n.Instance.Product
	}
	return n.Journal.save()
}

// dropMeshState drops what a copied journal's node knew of its mesh.
func (n *Node) dropMeshState() error {
	for _, name := range []string{membersFile, membershipFile, statusFile, marksFile} {
		if err := os.Remove(n.Platform.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (n *Node) decideIdentity(ctx context.Context, action Action) (Identity, error) {
	host, err := os.Hostname()
	if err != nil {
		return Identity{}, err
	}
	address, err := advertise(ctx, n.Config)
	if err != nil {
		return Identity{}, err
	}
	id := Identity{Hostname: host, Advertise: address, UUID: uuid.New(), Adopted: action == Adopt}
	// A manifest beside a journal is that of the image of the original.
	id.Copied = action == Become && (n.Journal != nil || !n.brokerSealed())
	if id.Adopted {
		db, err := n.DB(ctx)
		if err != nil {
			return Identity{}, err
		}
		if id.UUID, err = identity.UUID(ctx, db, n.Platform); err != nil {
			return Identity{}, err
		}
	}
	id.Name = identity.NodeName(host, id.UUID)
	return id, nil
}

func keptDocument(_ context.Context, n *Node) (Resource, error) {
	if n.DocumentErr != nil {
		return nothing, nil // the one in force is the one that was kept
	}
	want := cloudinit.UserData(n.Config)
	return resource{
		diff: func(context.Context) ([]string, error) {
			have, err := os.ReadFile(n.Platform.Path(documentFile))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if string(have) == string(want) {
				return nil, nil
			}
			return []string{documentFile + " is not the document in force"}, nil
		},
		apply: func(context.Context) error { return n.keepDocument() },
	}, nil
}

// sshHostKeys are made by cloud-init where it runs; a sealed image that boots
// without a data source has none, and ssh must work on it all the same.
func sshHostKeys(_ context.Context, n *Node) (Resource, error) {
	return resource{
		diff: func(context.Context) ([]string, error) {
			if _, err := os.Stat(n.Platform.Path("/etc/ssh")); errors.Is(err, fs.ErrNotExist) {
				return nil, nil
			}
			keys, err := filepath.Glob(n.Platform.Path("/etc/ssh/ssh_host_*_key"))
			if err != nil || len(keys) > 0 {
				return nil, err
			}
			return []string{"/etc/ssh has no host key"}, nil
		},
		apply: func(ctx context.Context) error {
			_, err := platform.Run(ctx, "ssh-keygen", "-A", "-f", n.Platform.Root)
			return err
		},
	}, nil
}

// kvExported makes sure that the KV was exported before anything removes it: by
// the seal, or by `run` while Consul was up, or here from the files at rest.
func kvExported(_ context.Context, n *Node) (Resource, error) {
	return n.export(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		return n.replaceExport(func(file string) error { return consul.ExportAtRest(ctx, n.Platform, file) })
	}), nil
}

// export is an export that holds what Consul does, or did before its state went.
func (n *Node) export(export func(context.Context) error) Resource {
	there := exported(n, export)
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			diff, err := there.Diff(ctx)
			// Half of a state is no KV.
			half := n.emptied() && !n.Journal.Done(consulGone)
			if diff != nil || err != nil || n.exported || half {
				return diff, err
			}
			// The seal emptied Consul: what it holds since is not the KV.
			if sum, err := n.sum(exportFile); err != nil || n.manifest != nil && n.manifest.KV == sum {
				return nil, err
			}
			// And without state or certificate it cannot have run since.
			for _, needed := range []string{platform.ConsulDataDir + "/raft", platform.CertificateFile} {
				if _, err := os.Stat(n.Platform.Path(needed)); errors.Is(err, fs.ErrNotExist) {
					return nil, nil
				} else if err != nil {
					return nil, err
				}
			}
			return []string{"Consul may hold more than the export that an earlier run left"}, nil
		},
		apply: export,
	}
}

// emptied says that only the export has the KV: Consul's state went, or was
// about to, and the KV is not back. What Consul holds now came after that.
func (n *Node) emptied() bool {
	return n.Journal != nil && n.Journal.begun(consulGone) && !n.Journal.Finished(SettlePhase)
}

// exported is the export's presence; export makes one.
func exported(n *Node, export func(context.Context) error) Resource {
	return resource{
		diff: func(context.Context) ([]string, error) {
			_, err := os.Stat(n.Platform.Path(exportFile))
			if errors.Is(err, fs.ErrNotExist) {
				return []string{"Consul's KV was not exported yet"}, nil
			}
			return nil, err
		},
		apply: export,
	}
}

// withDB opens a step's resource on XiVO's database.
func withDB(open func(n *Node, db *pgx.Conn) Resource) func(context.Context, *Node) (Resource, error) {
	return func(ctx context.Context, n *Node) (Resource, error) {
		db, err := n.DB(ctx)
		if err != nil {
			return nil, err
		}
		return open(n, db), nil
	}
}

var (
	hostname = withDB(func(n *Node, db *pgx.Conn) Resource {
		return identity.Hostname(db, n.Platform, n.Identity().Hostname, "")
	})
	uuidInDatabase = withDB(func(n *Node, db *pgx.Conn) Resource {
		return identity.UUIDInDatabase(db, n.Identity().UUID)
	})
)

func uuidInFiles(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.UUIDInEnvironment {
		return nothing, nil
	}
	return identity.UUIDInFiles(n.Platform, n.Identity().UUID), nil
}

func uuidInManager(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.UUIDInEnvironment {
		return nothing, nil
	}
	return identity.UUIDInManager(n.Platform, n.Identity().UUID), nil
}

// oldKeysGone finds nothing on a sealed image; on a copy that was not sealed, the
// keys are the original's. An adopted server keeps its own.
func oldKeysGone(ctx context.Context, n *Node) (Resource, error) {
	if n.Identity().Adopted {
		return nothing, nil
	}
	db, err := n.DB(ctx)
	if err != nil {
		return nil, err
	}
	return all{
		seal.Gone(n.Platform, platform.CertificateFile, platform.CertificateKey, platform.RabbitDataDir+"/.erlang.cookie"),
		identity.NoServiceKeys(db, n.Platform),
	}, nil
}

var serviceKeys = withDB(func(n *Node, db *pgx.Conn) Resource {
	if n.Identity().Adopted {
		return nothing
	}
	return identity.ServiceKeys(db, n.Platform)
})

func certificate(_ context.Context, n *Node) (Resource, error) {
	return identity.Certificate(n.Platform), nil
}

func brokerPlugins(_ context.Context, n *Node) (Resource, error) {
	return rabbitmq.Plugins(n.Platform), nil
}

// brokerStart is the plugins that the broker starts with. That of a copy would
// go on as the original; settle takes out what it would do that with.
func brokerStart(ctx context.Context, n *Node) (Resource, error) {
	if n.Identity().Copied {
		return rabbitmq.ManagementOnly(n.Platform), nil
	}
	return brokerPlugins(ctx, n)
}

func brokerManagement(_ context.Context, n *Node) (Resource, error) {
	return rabbitmq.ManagementOnLoopback(n.Platform), nil
}

func consulEmptied(_ context.Context, n *Node) (Resource, error) {
	emptied := consul.Emptied(n.Platform)
	return resource{
		diff: emptied.Diff,
		apply: func(ctx context.Context) error {
			if _, err := os.Stat(n.Platform.Path(exportFile)); err != nil {
				return fmt.Errorf("the KV's export is missing, so Consul's state stays: %w", err)
			}
			// What Consul writes after a refusal is not in the export.
			if err := consul.StateInUse(n.Platform); err != nil {
				return err
			}
			if n.Journal != nil { // a seal has none
				if err := n.Journal.stamp(consulGone, running); err != nil {
					return err
				}
			}
			if err := emptied.Apply(ctx); err != nil || n.Journal == nil {
				return err
			}
			return n.Journal.stamp(consulGone, done)
		},
	}, nil
}

func consulConfig(ctx context.Context, n *Node) (Resource, error) {
	peers, err := others(ctx, n.Config.Peers)
	if err != nil {
		n.Log.Warn("some peers cannot be resolved yet; they will be joined when they can", "error", err)
	}
	return n.consulFile(peers), nil
}

// consulFile is Consul's configuration with these peers to join at each start.
func (n *Node) consulFile(peers []string) Resource {
	s := consul.Settings{
		Name:        n.Identity().Name,
		Advertise:   n.Identity().Advertise,
		JoinWAN:     peers,
		MasterToken: n.Credentials().ConsulToken(),
	}
	if n.Config.Consul.Encrypt {
		s.GossipKey = n.Credentials().GossipKey()
	}
	return consul.ConfigFile(n.Platform, s)
}

func consulTokens(_ context.Context, n *Node) (Resource, error) {
	return consul.TokenFiles(n.Platform, n.Credentials().ConsulToken()), nil
}

func ctidConfig(_ context.Context, n *Node) (Resource, error) {
	return ctid.ConfigFile(n.Platform, n.Identity().Advertise), nil
}
