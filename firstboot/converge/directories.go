package converge

import (
	"context"
	"slices"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// directories is a source for every member, and none of ours for others.
func directories(ctx context.Context, p *Pass) (engine.Resource, error) {
	db, err := p.Node.Servers.DB(ctx)
	if err != nil {
		return nil, err
	}
	v, d := p.View.Directory, p.Decision
	if v.Err != nil {
		return nil, v.Err
	}
	wants := p.View.Document.Directory
	credentials := p.Node.Credentials()

	var rs engine.All
	wanted := map[string]bool{}
	for _, m := range d.Members {
		wanted[directory.Name(m.UUID)] = true
		peer := directory.Peer{UUID: m.UUID, Host: m.Host, Address: m.Address, Known: hostsOf(m, d.Members, v.HostsByAddress)}
		rs = append(rs, directory.Source(db, peer, credentials.Account(), credentials.DirectoryPassword(), directory.Options{
			Contexts:          wants.Contexts,
			VerifyCertificate: wants.VerifyCertificate,
			CAFile:            wants.CAFile,
			Suspended:         m.Suspended,
		}))
	}
	for _, s := range v.Sources {
		if s.OfMesh && !wanted[s.Name] {
			rs = append(rs, directory.NoSource(db, s.Name))
		}
	}
	return rs, nil
}

// dirdRestarted: xivo-dird reads its sources at start only. The daemon is
// restarted once when they changed, and not when they did not.
func dirdRestarted(ctx context.Context, p *Pass) (engine.Resource, error) {
	db, err := p.Node.Servers.DB(ctx)
	if err != nil {
		return nil, err
	}
	// As the step before left them.
	found, err := directory.Sources(ctx, db)
	if err != nil {
		return nil, err
	}
	found = slices.DeleteFunc(found, func(f directory.Found) bool { return !f.OfMesh })
	return restartedSince(p.Node, platform.Dird, "sources", found, func(m *Marks) *string { return &m.Directories }), nil
}
