package firstboot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// Files of ours below platform.StateDir. All are root's alone.
const (
	journalFile  = platform.StateDir + "/journal.json"
	documentFile = platform.StateDir + "/document.yml"
	exportFile   = platform.StateDir + "/kv.json"
	membersFile  = platform.StateDir + "/members.json"
	// membershipFile is there when this node left, and when it came back.
	membershipFile = platform.StateDir + "/membership.json"
	statusFile     = platform.StateDir + "/status.json"
	marksFile      = platform.StateDir + "/marks.json"
	manifestFile   = platform.StateDir + "/seal.json"
	lockFile       = platform.StateDir + "/lock"
)

// Node is this machine while a command runs: what was found, what was decided,
// and the connections that steps opened. Close it.
type Node struct {
	Platform *platform.Platform
	Log      *slog.Logger
	Progress Progress
	// Config is the document in force: the user's, or the last good one.
	Config *cloudinit.Config
	// DocumentErr is why the user's document is not the one in force.
	DocumentErr error
	// noDocument is where one was looked for in vain, which is no error.
	noDocument error
	// late is the first document of a node that became without one: it is in
	// force from the next become on.
	late     *cloudinit.Config
	Instance Instance
	// Journal is nil until this machine became something.
	Journal *Journal

	// manifest is nil where no seal was; manifestErr is why it cannot be read.
	manifest    *seal.Manifest
	manifestErr error

	members []mesh.Member
	refused []mesh.Refusal
	// wan is who lives in Consul's WAN, this node not counted.
	wan []consul.Member
	// unanswered are the addresses of those that did not say who they are, since
	// when.
	unanswered map[string]time.Time
	// onTrial: a newcomer, which not all members may have asked yet.
	onTrial bool
	// gone are the nodes that left, as far as this one knows; leftAt is when it
	// left itself.
	gone   mesh.Gone
	leftAt time.Time
	// verdict is why the mesh refused this node; asked says that it was asked
	// again since this process was started.
	verdict string
	asked   bool
	// names are where the hosts that a person wrote led last.
	names map[string][]netip.Addr
	// firstPass is when the first pass of this boot was made.
	firstPass time.Time
	canary    *rabbitmq.Canary
	// answered is who answered the canary in this pass, and how fast.
	answered map[string]time.Duration
	// hasPeers: the document names a peer that is not this node.
	hasPeers bool
	// pending: something of a peer was not there yet; the next pass is soon.
	pending bool
	// notices are for a person: what is not ours to change.
	notices []string
	// unmanaged names WAN members that do not tell who they are.
	unmanaged []string

	// exported: this process made the export of the KV.
	exported bool

	db     *pgx.Conn
	consul *consul.Client
	broker *rabbitmq.Client
	// One wait for a server that is down is enough for a pass.
	dbErr, consulErr, brokerErr error
	brokerRestarted             bool

	lock *os.File
}

// Open finds out what this machine is. It changes nothing.
func Open(root string, log *slog.Logger) (*Node, error) {
	p, err := platform.Detect(root)
	if err != nil {
		return nil, err
	}
	n := &Node{Platform: p, Log: log, Progress: func(Event) {}}
	if n.Journal, err = readJournal(p.Path(journalFile)); err != nil {
		return nil, err
	}
	n.manifest, n.manifestErr = seal.ReadManifest(p.Path(manifestFile))
	id, real := cloudinit.Instance(root)
	if !real {
		id = ""
	}
	n.Instance = Instance{ID: id, Product: p.ProductUUID()}
	n.Config, n.DocumentErr = n.loadDocument()
	return n, nil
}

// loadDocument prefers the user's document, and falls back to the last good one
// of an instance that became with it.
func (n *Node) loadDocument() (*cloudinit.Config, error) {
	n.late = nil
	given, err := cloudinit.Load(n.Platform.Root)
	switch {
	case err != nil:
	case n.lives() && n.Journal.Identity.NoDocument:
		n.late = given
	default:
		if err = n.keepsForLife(given); err == nil {
			return given, nil
		}
	}
	if n.noDocument = nil; errors.Is(err, cloudinit.ErrNoDocument) {
		n.noDocument, err = err, nil
	}
	if n.Journal == nil {
		return nil, err
	}
	config, keptErr := n.lastDocument()
	return config, errors.Join(err, keptErr)
}

// lastDocument is the one that was in force last.
func (n *Node) lastDocument() (*cloudinit.Config, error) {
	raw, err := os.ReadFile(n.Platform.Path(documentFile))
	if err != nil {
		return nil, err
	}
	return cloudinit.Parse(raw, documentFile)
}

// lives says that this is the instance that became, or that began to.
func (n *Node) lives() bool {
	if n.Journal == nil {
		return false
	}
	how, _ := n.Journal.Instance.compare(n.Instance)
	return how == same
}

// keepsForLife refuses a document that changes what an instance keeps for as long
// as it lives, from when it began to become. To carry out a part would cut it off
// from its mesh: Consul goes on with the gossip key and the token that it has.
func (n *Node) keepsForLife(next *cloudinit.Config) error {
	if !n.lives() {
		return nil // what it is now, and with which document, is decided first
	}
	was, err := n.lastDocument()
	if err != nil {
		return nil // a good document is better than none
	}
	var changed []string
	if next.Secret != was.Secret {
		changed = append(changed, "`secret`")
	}
	if next.Consul.Encrypt != was.Consul.Encrypt {
		changed = append(changed, "`consul.encrypt`")
	}
	if next.Advertise != was.Advertise && next.Advertise.Address != n.Identity().Advertise {
		changed = append(changed, "`advertise`")
	}
	if len(changed) == 0 {
		return nil
	}
	return fmt.Errorf("it changes %s, which a node keeps for life (its address is %s): put that back, or boot another node with it and let this one leave",
		strings.Join(changed, " and "), n.Identity().Advertise)
}

// keepDocument writes the document in force where the next boot finds it, also
// when the seed is detached.
func (n *Node) keepDocument() error {
	return writePrivate(n.Platform.Path(documentFile), cloudinit.UserData(n.Config))
}

// Close ends the connections and gives the lock back.
func (n *Node) Close() {
	if n.db != nil {
		n.db.Close(context.Background())
		n.db = nil
	}
	if n.canary != nil {
		n.canary.Close()
		n.canary = nil
	}
	n.Unlock()
}

// DB returns the connection to XiVO's database, opened at the first use and
// after a failure.
func (n *Node) DB(ctx context.Context) (*pgx.Conn, error) {
	if n.db != nil && !n.db.IsClosed() {
		return n.db, nil
	}
	if n.dbErr != nil {
		return nil, n.dbErr
	}
	n.db, n.dbErr = postgres.Connect(ctx)
	return n.db, n.dbErr
}

// Consul returns the client of the local agent, once it has a leader.
func (n *Node) Consul(ctx context.Context) (*consul.Client, error) {
	if n.consul != nil || n.consulErr != nil {
		return n.consul, n.consulErr
	}
	c, err := consul.Dial(n.Platform)
	if err == nil {
		if err = c.WaitLeader(ctx); err != nil {
			err = fmt.Errorf("%w; `journalctl -u consul` or /var/log/syslog may tell why", err)
		}
	}
	if err != nil {
		n.consulErr = err
		return nil, err
	}
	n.consul = c
	return c, nil
}

// brokerWait is how long a broker that was started may take to answer; XiVO is
// down meanwhile in a live run.
const brokerWait = 3 * time.Minute

// Broker returns the client of the local broker, once it answers.
func (n *Node) Broker(ctx context.Context) (*rabbitmq.Client, error) {
	if n.broker != nil || n.brokerErr != nil {
		return n.broker, n.brokerErr
	}
	ctx, cancel := context.WithTimeout(ctx, brokerWait)
	defer cancel()
	b := rabbitmq.Dial()
	if n.brokerErr = b.Wait(ctx); n.brokerErr != nil {
		return nil, n.brokerErr
	}
	n.broker = b
	return b, nil
}

// Canary returns the open canary; a broken one is opened again.
func (n *Node) Canary(ctx context.Context) (*rabbitmq.Canary, error) {
	if n.canary != nil {
		select {
		case err := <-n.canary.Done():
			n.Log.Warn("the canary's connection ended, opening it again", "error", err)
			n.canary.Close()
			n.canary = nil
		default:
			return n.canary, nil
		}
	}
	var err error
	n.canary, err = rabbitmq.OpenCanary(ctx, rabbitmq.LocalAMQP, n.Identity().UUID.String())
	return n.canary, err
}

// reload reads again what may change under a process that stays: the document,
// of which the last good one stays in force, and the version.
func (n *Node) reload() {
	if p, err := platform.Detect(n.Platform.Root); err != nil {
		n.Log.Warn("going on as the version of before", "error", err)
	} else {
		n.Platform = p
	}
	config, err := n.loadDocument()
	if err != nil && (n.DocumentErr == nil || err.Error() != n.DocumentErr.Error()) {
		n.Log.Warn("the document is not taken: the last good one stays in force", "error", err)
	}
	n.DocumentErr = err
	if config == nil || n.Config != nil && string(cloudinit.UserData(config)) == string(cloudinit.UserData(n.Config)) {
		return
	}
	n.Log.Info("there is a new document")
	n.Config, n.asked = config, false
}

// Identity is the node's own; the zero value before it became.
func (n *Node) Identity() Identity {
	if n.Journal == nil {
		return Identity{}
	}
	return n.Journal.Identity
}

// Credentials derives what the mesh shares from the document's secret.
func (n *Node) Credentials() secret.Generation { return secret.NewGeneration(n.Config.Secret) }

// Self is this node as the others see it.
func (n *Node) Self() mesh.Member {
	id := n.Identity()
	return mesh.Member{
		UUID:    id.UUID,
		Host:    id.Hostname,
		Name:    id.Name,
		Address: id.Advertise,
		Version: n.Platform.Version.String(),
		KeyID:   n.Credentials().KeyID(),

		Registered: n.registered(),
	}
}

// membership is what membershipFile holds.
type membership struct {
	// Registered is when this node came into its mesh: when it became, or when it
	// came back.
	Registered time.Time `json:"registered"`
	// Left are the addresses of the members that it left.
	Left []string `json:"left,omitempty"`
}

func (n *Node) membership() (membership, error) {
	m := membership{}
	if n.Journal != nil {
		m.Registered = n.Journal.Steps[BecomePhase.Name].At
	}
	return m, n.readState(membershipFile, &m)
}

func (n *Node) registered() time.Time {
	m, err := n.membership()
	if err != nil {
		n.Log.Warn("when this node came back is not known", "error", err)
	}
	return m.Registered
}

// reset forgets what the last pass found out, so that the next one asks again.
func (n *Node) reset() {
	n.consul, n.broker = nil, nil
	n.dbErr, n.consulErr, n.brokerErr = nil, nil, nil
	n.answered, n.refused, n.unmanaged, n.wan, n.notices, n.pending = nil, nil, nil, nil, nil, false
}

// readState reads one of our JSON files; a missing one leaves v as it is.
func (n *Node) readState(file string, v any) error {
	raw, err := os.ReadFile(n.Platform.Path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", file, err)
	}
	return nil
}

func (n *Node) writeState(file string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writePrivate(n.Platform.Path(file), append(raw, '\n'))
}

// placeholder stands in a sealed image where the XiVO UUID was; a first boot
// must replace it.
var placeholder = uuid.Nil
