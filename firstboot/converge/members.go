package converge

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// members is the decision on who is in the mesh being on the disk, and those who
// cannot know of it being told.
func members(ctx context.Context, p *Pass) (engine.Resource, error) {
	if p.View.WAN.Err != nil {
		return nil, p.View.WAN.Err
	}
	c, err := p.Node.Servers.Consul(ctx)
	if err != nil {
		return nil, err
	}
	if p.Node.HasOverlay() {
		return membersKept(p), nil
	}
	return engine.All{membersKept(p), departuresTold(p.Decision, c), refusalsTold(p, c)}, nil
}

func membersKept(p *Pass) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		var onDisk []mesh.Member
		if err := p.Node.ReadState(node.MembersFile, &onDisk); err != nil {
			return nil, err
		}
		return memberDiff(onDisk, p.Decision.Members, p.Decision.Departed, p.View.Trusted), nil
	}, func(context.Context) error { return p.Node.WriteState(node.MembersFile, p.Decision.Members) })
}

// memberDiff tells what changed in the mesh. When a member was last seen is
// written along, but is no change.
func memberDiff(have, want []mesh.Member, departed mesh.Departures, trusted time.Time) []string {
	var diff []string
	at := func(ms []mesh.Member, m mesh.Member) int {
		return slices.IndexFunc(ms, func(o mesh.Member) bool { return o.UUID == m.UUID })
	}
	for _, m := range want {
		switch i := at(have, m); {
		case i < 0:
			diff = append(diff, m.String()+" is new in the mesh")
		case have[i].Address != m.Address || have[i].Name != m.Name || have[i].Version != m.Version || have[i].KeyID != m.KeyID || !have[i].Registered.Equal(m.Registered):
			diff = append(diff, m.String()+" changed")
		case have[i].Suspended != m.Suspended:
			diff = append(diff, fmt.Sprintf("%s is suspended: %t", m.Host, m.Suspended))
		case m.Seen.Sub(have[i].Seen) > suspendedAfter/2:
			diff = append(diff, fmt.Sprintf("%s was last seen at %s", m.Host, m.Seen.Format(time.TimeOnly)))
		}
	}
	for _, m := range have {
		switch {
		case at(want, m) >= 0:
		case departed.Has(m, trusted):
			diff = append(diff, m.String()+" left")
		default:
			diff = append(diff, m.String()+" is no member any more")
		}
	}
	return diff
}

// departuresTold notes here, for those that were away, who left, and tells those
// that do not know.
func departuresTold(d Decision, c *consul.Client) engine.Resource {
	var rs engine.All
	for _, m := range d.TellDeparted {
		at := d.Departed[m.UUID]
		rs = append(rs, engine.New(func(ctx context.Context) ([]string, error) {
			notes, err := c.Notes(ctx, m.Datacenter, departedNotes+m.UUID.String())
			if err != nil || !at.After(parseDeparted(map[string]string{m.UUID.String(): notes[""]}, "")[m.UUID]) {
				return nil, err
			}
			return []string{fmt.Sprintf("%s left the mesh, which %s does not know yet", m.UUID, cmp.Or(m.Datacenter, "this node"))}, nil
		}, func(ctx context.Context) error { return tellDeparted(ctx, c, m.Datacenter, m.UUID, at) }))
	}
	return rs
}

// tellDeparted notes in a datacenter when a node left.
func tellDeparted(ctx context.Context, c *consul.Client, datacenter string, id uuid.UUID, at time.Time) error {
	return c.SetNote(ctx, datacenter, departedNotes+id.String(), at.Format(time.RFC3339Nano))
}

// refusalsTold tells those that are refused, who cannot ask us for the reason.
func refusalsTold(p *Pass, c *consul.Client) engine.Resource {
	mine := refusedNotes + p.View.Self.Name
	refusalNote := func(ctx context.Context, r mesh.Refusal) (text string, done bool, err error) {
		raw, err := json.Marshal(Refusal{Reason: r.Reason, Version: r.Member.Version})
		if err != nil {
			return "", false, err
		}
		notes, err := c.Notes(ctx, r.Member.Name, mine)
		return string(raw), notes[""] == string(raw), err
	}
	var rs engine.All
	for _, r := range p.Decision.TellRefused {
		rs = append(rs, engine.New(func(ctx context.Context) ([]string, error) {
			if _, done, err := refusalNote(ctx, r); done || err != nil {
				return nil, err
			}
			return []string{r.Member.String() + " is not told yet that it is refused: it " + r.Reason}, nil
		}, func(ctx context.Context) error {
			text, _, err := refusalNote(ctx, r)
			if err != nil {
				return err
			}
			return c.SetNote(ctx, r.Member.Name, mine, text)
		}))
	}
	return rs
}
