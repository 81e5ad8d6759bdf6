// Package node is this machine while a command runs: what was found on it, the
// document, the journal, the lock, the connections to its servers, and the pure
// decision on what becomes of its identity. The phases work on it; it knows none of
// their steps.
package node

import (
	"context"
	"log/slog"
	"os"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Node is this machine while a command runs. Close it.
type Node struct {
	Platform *platform.Platform
	Log      *slog.Logger
	Progress engine.Progress
	Instance Instance
	Document Document
	// Journal is nil until this machine became something.
	Journal *Journal
	// Seal is what the image says of how it was sealed.
	Seal    Seal
	Servers *Servers
	// KV is the export of Consul's KV, wherever that is now.
	KV *kvexport.Export

	lock        *os.File
	credentials credentials
}

// Open finds out what the machine below root is. It changes nothing, and asks no
// server. A version or a journal that cannot be read is an error: nothing may be
// done to a machine of which that is not known.
func Open(root string, log *slog.Logger) (*Node, error) {
	p, err := platform.Detect(root)
	if err != nil {
		return nil, err
	}
	n := New(p, log)
	if n.Journal, err = readJournal(p.Path(journalFile)); err != nil {
		return nil, err
	}
	n.Seal.Manifest, n.Seal.Err = manifest.Read(p.Path(ManifestFile))
	id, real := cloudinit.Instance(root)
	if !real {
		id = ""
	}
	n.Instance = Instance{ID: id, Product: p.ProductUUID()}
	n.Document = n.readDocument()
	return n, nil
}

// New is a node of which nothing but its platform is known.
func New(p *platform.Platform, log *slog.Logger) *Node {
	n := &Node{Platform: p, Log: log, Servers: NewServers(p)}
	n.KV = kvexport.New(p, kvexport.Surroundings{
		Journal: func() engine.Journal {
			if n.Journal == nil {
				return nil
			}
			return n.Journal
		},
		SealedSum: func() string {
			if n.Seal.Manifest == nil {
				return ""
			}
			return n.Seal.Manifest.KV
		},
		Runs: func(ctx context.Context) (bool, error) {
			return p.Init.Active(ctx, p.Service(platform.Consul))
		},
		Consul: func(ctx context.Context) (*consul.Client, error) { return n.Servers.Consul(ctx) },
	})
	return n
}

// Close ends the connections and gives the lock back.
func (n *Node) Close() {
	n.Servers.Close()
	n.Unlock()
}

// Runner runs phases on this node.
func (n *Node) Runner() engine.Runner[*Node] {
	r := engine.Runner[*Node]{Subject: n, Progress: n.Progress}
	if n.Journal != nil {
		r.Journal = n.Journal
	}
	return r
}

// Reload reads again what may change under a process that stays: the document, of
// which the last good one stays in force, and XiVO's version. It says whether
// another document is in force.
func (n *Node) Reload() (changed bool) {
	if p, err := platform.Detect(n.Platform.Root); err != nil {
		n.Log.Warn("going on as the version of before", "error", err)
	} else {
		*n.Platform = *p // which others hold, too
	}
	next := n.readDocument()
	if next.Err != nil && (n.Document.Err == nil || next.Err.Error() != n.Document.Err.Error()) {
		n.Log.Warn("the document is not taken: the last good one stays in force", "error", next.Err)
	}
	if next.Config == nil {
		next.Config = n.Document.Config
	}
	changed = next.Config != nil && (n.Document.Config == nil || string(cloudinit.UserData(next.Config)) != string(cloudinit.UserData(n.Document.Config)))
	n.Document = next
	return changed
}

// Config is the document in force; nil where there is none.
func (n *Node) Config() *cloudinit.Config { return n.Document.Config }

// Identity is the node's own; the zero value before it became.
func (n *Node) Identity() Identity {
	if n.Journal == nil {
		return Identity{}
	}
	return n.Journal.Identity
}

// Self is this node as the others see it.
func (n *Node) Self() mesh.Member {
	id := n.Identity()
	return mesh.Member{
		UUID:    id.UUID,
		Host:    id.Hostname,
		Name:    id.Name,
		Address: n.Address(),
		Version: n.Platform.Version.String(),
		KeyID:   n.Credentials().KeyID(),
	}
}
