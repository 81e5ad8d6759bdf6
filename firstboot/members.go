package firstboot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

func joinedWAN(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	peers, err := others(ctx, n.Config.Peers)
	if len(peers) == 0 {
		return nothing, err
	}
	// One living peer is enough: gossip tells of the others.
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			wan, err := c.WANMembers(ctx)
			if err != nil {
				return nil, err
			}
			for _, m := range wan {
				if m.Alive && slices.Contains(peers, m.Address) {
					return nil, nil
				}
			}
			return []string{"none of the peers " + strings.Join(peers, ", ") + " is in Consul's WAN"}, nil
		},
		apply: func(ctx context.Context) error {
			var errs []error
			for _, peer := range peers {
				err := c.JoinedWAN([]string{peer}).Apply(ctx)
				if err == nil {
					return nil
				}
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		},
	}, nil
}

// membersKnown asks every datacenter of the WAN who it is, and takes newcomers
// in. A datacenter that does not answer keeps the place that it has.
func membersKnown(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	wan, err := c.WANMembers(ctx)
	if err != nil {
		return nil, err
	}

	var seen []mesh.Member
	for _, w := range wan {
		if !w.Alive || w.Datacenter == n.Identity().Name {
			continue
		}
		regs, err := c.Services(ctx, w.Datacenter, mesh.ServiceName)
		if err != nil {
			n.Log.Debug("a WAN member does not answer", "member", w.Name, "error", err)
			n.pending = true
			continue
		}
		if len(regs) == 0 {
			n.unmanaged = append(n.unmanaged, w.Name)
		}
		for _, r := range regs {
			m, err := mesh.ParseMember(w.Datacenter, r.Address, r.Tags)
			if err != nil {
				n.Log.Warn("a member's registration is unusable", "member", w.Name, "error", err)
				continue
			}
			seen = append(seen, m)
		}
	}

	known := n.members
	var next []mesh.Member
	next, n.refused = mesh.Merge(n.Self(), known, seen, time.Now().UTC())
	n.members = next
	return resource{
		diff: func(context.Context) ([]string, error) {
			var onDisk []mesh.Member
			if err := n.readState(membersFile, &onDisk); err != nil {
				return nil, err
			}
			return memberDiff(onDisk, next), nil
		},
		apply: func(context.Context) error { return n.writeState(membersFile, next) },
	}, nil
}

// memberDiff tells what changed in the mesh. When a member was last seen is
// written along, but is no change.
func memberDiff(have, want []mesh.Member) []string {
	var diff []string
	at := func(ms []mesh.Member, m mesh.Member) int {
		return slices.IndexFunc(ms, func(o mesh.Member) bool { return o.UUID == m.UUID })
	}
	for _, m := range want {
		switch i := at(have, m); {
		case i < 0:
			diff = append(diff, fmt.Sprintf("%s (%s, %s) is new in the mesh", m.Host, m.Address, m.UUID))
		case have[i].Address != m.Address || have[i].Name != m.Name || have[i].Version != m.Version || have[i].KeyID != m.KeyID:
			diff = append(diff, fmt.Sprintf("%s (%s) changed", m.Host, m.UUID))
		case m.Seen.Sub(have[i].Seen) > suspendedAfter/2:
			diff = append(diff, fmt.Sprintf("%s was last seen at %s", m.Host, m.Seen.Format(time.TimeOnly)))
		}
	}
	for _, m := range have {
		if at(want, m) < 0 {
			diff = append(diff, fmt.Sprintf("%s (%s, %s) was replaced", m.Host, m.Address, m.UUID))
		}
	}
	return diff
}
