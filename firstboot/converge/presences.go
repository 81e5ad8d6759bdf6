package converge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// credentialsOfMembers: xivo-ctid-ng too reads its configuration at start only.
// It holds no clients, so it may be restarted for a newcomer.
func credentialsOfMembers(p *Pass) engine.Resource {
	// The account tells the generation of the secret.
	type credential struct {
		Account string
		UUID    uuid.UUID
	}
	n := p.Node
	account, password := n.Credentials().Account(), n.Credentials().DirectoryPassword()
	var peers []ctid.Peer
	var read []credential
	for _, m := range p.Decision.Members {
		peers = append(peers, ctid.Peer{Name: directory.Name(m.UUID), UUID: m.UUID})
		read = append(read, credential{account, m.UUID})
	}
	return engine.All{
		ctid.Credentials(n.Platform, n.Address(), account, password, peers),
		restartedSince(n, platform.CtidNG, "credentials", read, func(m *Marks) *string { return &m.Credentials }),
	}
}

// ctidRegistered looks at what xivo-ctid did with its configuration, not at the
// configuration: files that it cannot read are skipped in silence.
func ctidRegistered(p *Pass, c *consul.Client) engine.Resource {
	n := p.Node
	want := n.Address()
	return engine.New(func(ctx context.Context) ([]string, error) {
		overridden, err := ctid.Overridden(n.Platform, want)
		if err != nil {
			return nil, err
		}
		if len(overridden) > 0 {
			return nil, fmt.Errorf("xivo-ctid does not take our address: %s in %s comes first and sets another; remove the key there", overridden, platform.CtidConfigDir)
		}
		services, err := c.LocalServices(ctx)
		if err != nil {
			return nil, err
		}
		r := ctidOf(services, n.Identity().UUID.String())
		if r.ID == "" {
			// A restart would drop every client, and may be under way: the
			// daemon registers by itself when it can.
			p.unfinished = true
			return nil, errors.New("xivo-ctid is not registered with this node's UUID (yet); see its log")
		}
		if r.Address == want {
			return nil, nil
		}
		return []string{fmt.Sprintf("xivo-ctid is registered at %s, not at %s", r.Address, want)}, nil
	}, func(ctx context.Context) error {
		if err := restartCtidOnce(ctx, n, want); err != nil {
			return err
		}
		return c.WaitService(ctx, ctid.Service, want)
	})
}

// restartCtidOnce restarts xivo-ctid once for each address: it drops every client,
// and a second restart would not help.
func restartCtidOnce(ctx context.Context, n *node.Node, address string) error {
	m := readMarks(n)
	if m.CtidRestarted == address {
		return errors.New("a restart did not help; see the log of xivo-ctid")
	}
	// Where it cannot be marked, each pass would restart it.
	if err := n.WriteState(node.MarksFile, m); err != nil {
		return err
	}
	if err := n.Platform.Init.Restart(ctx, n.Platform.Service(platform.Ctid)); err != nil {
		return err
	}
	// Not before: a restart that was cut off has not failed to help.
	m.CtidRestarted = address
	return n.WriteState(node.MarksFile, m)
}

// opening is a member's xivo-ctid that the local one is to be told of.
type opening struct{ uuid, address, id, key string }

// presencesOpened makes the local xivo-ctid look a member up that it may have
// looked for before the member was there: it keeps an empty answer until it is
// restarted or hears of a registration (docs/xivo/ctid.md, The cache of xivo-ctid). The announcement is local, and made
// only when messages from that member arrive.
func presencesOpened(ctx context.Context, p *Pass) (engine.Resource, error) {
	c, err := p.Node.Servers.Consul(ctx)
	if err != nil {
		return nil, err
	}
	missing, errs, err := p.openings(ctx, c)
	if err != nil {
		return nil, err
	}
	return engine.New(func(context.Context) ([]string, error) {
		var diff []string
		m := readMarks(p.Node)
		for _, o := range missing {
			if m.Presences[o.uuid] != o.key {
				diff = append(diff, "xivo-ctid was not told of the one at "+o.address)
			}
		}
		return diff, errs
	}, func(ctx context.Context) error {
		canary, err := p.memory.openCanary(ctx, p.Node)
		if err != nil {
			return err
		}
		m := readMarks(p.Node)
		for _, o := range missing {
			if err := canary.AnnounceCtid(ctx, o.uuid, o.id, o.address); err != nil {
				return err
			}
			m.Presences[o.uuid] = o.key
		}
		return p.Node.WriteState(node.MarksFile, m)
	}), nil
}

// openings are those that the local xivo-ctid was not told of, of the members that
// are heard; errs is why some of them are not known.
func (p *Pass) openings(ctx context.Context, c *consul.Client) (missing []opening, errs, err error) {
	heard, err := p.Heard(ctx)
	if err != nil {
		return nil, nil, nil // which is told as the canary's
	}
	local, err := c.LocalServices(ctx)
	if err != nil {
		return nil, nil, err
	}
	marks := readMarks(p.Node)
	// A restarted xivo-ctid has a new id, and may have cached again.
	own := ctidOf(local, p.Node.Identity().UUID.String())
	for _, member := range p.Decision.Members {
		id := member.UUID.String()
		if _, ok := heard[id]; !ok {
			continue
		}
		services, err := c.OthersServices(ctx, member.Name, ctid.Service)
		if err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		theirs := ctidOf(services, id)
		if theirs.ID == "" {
			p.unfinished = true
			continue
		}
		if key := own.ID + " " + theirs.ID; marks.Presences[id] != key {
			missing = append(missing, opening{id, theirs.Address, theirs.ID, key})
		}
	}
	return missing, errs, nil
}

// ctidOf is the xivo-ctid of a node among services; the zero value for none.
func ctidOf(services []consul.Registration, xivoUUID string) consul.Registration {
	services = slices.DeleteFunc(slices.Clone(services), func(r consul.Registration) bool {
		return r.Name != ctid.Service || !slices.Contains(r.Tags, xivoUUID)
	})
	if len(services) == 0 {
		return consul.Registration{}
	}
	return slices.MinFunc(services, func(a, b consul.Registration) int { return cmp.Compare(a.ID, b.ID) })
}
