package converge

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// members is the decision on who is in the mesh being on the disk.
func members(_ context.Context, p *Pass) (engine.Resource, error) {
	if p.View.Overlay.Err != nil {
		return nil, p.View.Overlay.Err
	}
	return engine.New(func(context.Context) ([]string, error) {
		var onDisk []mesh.Member
		if err := p.Node.ReadState(node.MembersFile, &onDisk); err != nil {
			return nil, err
		}
		return memberDiff(onDisk, p.Decision.Members), nil
	}, func(context.Context) error { return p.Node.WriteState(node.MembersFile, p.Decision.Members) }), nil
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
			diff = append(diff, m.String()+" is new in the mesh")
		case have[i].Address != m.Address || have[i].Name != m.Name || have[i].Version != m.Version || have[i].KeyID != m.KeyID || !slices.Equal(have[i].Outside, m.Outside):
			diff = append(diff, m.String()+" changed")
		case have[i].Suspended != m.Suspended:
			diff = append(diff, fmt.Sprintf("%s is suspended: %t", m.Host, m.Suspended))
		case m.Seen.Sub(have[i].Seen) > suspendedAfter/2:
			diff = append(diff, fmt.Sprintf("%s was last seen at %s", m.Host, m.Seen.Format(time.TimeOnly)))
		}
	}
	for _, m := range have {
		if at(want, m) < 0 {
			diff = append(diff, m.String()+" is no member any more")
		}
	}
	return diff
}
