package firstboot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

// suspendedAfter is how long a member may be unreachable before its source is
// taken out of the contexts: a dead source stalls everybody's lookups.
const suspendedAfter = 10 * time.Minute

func directories(ctx context.Context, n *Node) (Resource, error) {
	db, err := n.DB(ctx)
	if err != nil {
		return nil, err
	}
	options := directory.Options{
		Contexts:          n.Config.Directory.Contexts,
		VerifyCertificate: n.Config.Directory.VerifyCertificate,
		CAFile:            n.Config.Directory.CAFile,
	}
	found, err := directory.Sources(ctx, db)
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, f := range found {
		if !f.Ours {
			hosts = append(hosts, f.Address)
		}
	}
	byHand := n.leading(ctx, hosts)

	var rs all
	wanted := map[string]bool{}
	for _, m := range n.members {
		wanted[directory.Name(m.UUID)] = true
		o := options
		o.Suspended = m.Suspended
		rs = append(rs, directory.Source(db, directory.Peer{UUID: m.UUID, Host: m.Host, Address: m.Address, Known: byHand[m.Address]},
			n.Credentials().Account(), n.Credentials().DirectoryPassword(), o))
	}
	for _, f := range found {
		switch {
		case f.Ours && !wanted[f.Name]:
			rs = append(rs, directory.NoSource(db, f.Name))
		case !f.Ours && slices.ContainsFunc(n.members, func(m mesh.Member) bool { return slices.Contains(byHand[m.Address], f.Address) }):
			n.notice("the directory %s was made by hand for %s: it is left as it is, and not doubled", f.Name, f.Address)
		}
	}
	return rs, nil
}

// dirdRestarted: xivo-dird reads its sources at start only. The daemon is
// restarted once when they changed, and not when they did not.
func dirdRestarted(ctx context.Context, n *Node) (Resource, error) {
	db, err := n.DB(ctx)
	if err != nil {
		return nil, err
	}
	found, err := directory.Sources(ctx, db)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(f directory.Found) bool { return !f.Ours })
	return rereads(n, "xivo-dird", "sources", found, func(m *marks) *string { return &m.Directories }), nil
}

// rereads is a daemon that was started after what it reads at start last
// changed. The fingerprint of what it read is at mark.
func rereads[T any](n *Node, service, what string, wanted []T, mark func(*marks) *string) resource {
	now := fingerprint(wanted)
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			// A daemon that a person stopped reads them when he starts it.
			active, err := n.Platform.Init.Active(ctx, service)
			if err != nil || !active {
				return nil, err
			}
			m, err := n.marks()
			if read := *mark(&m); err != nil || read == now || read == "" && len(wanted) == 0 {
				return nil, err
			}
			return []string{service + " runs with " + what + " from before the last change"}, nil
		},
		apply: func(ctx context.Context) error {
			// Where it cannot be marked, each pass would restart it.
			if err := n.mark(func(*marks) {}); err != nil {
				return err
			}
			if err := n.Platform.Init.Restart(ctx, service); err != nil {
				return err
			}
			return n.mark(func(m *marks) { *mark(m) = now })
		},
	}
}

func fingerprint(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own plain structs
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}
