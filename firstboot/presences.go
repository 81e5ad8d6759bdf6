package firstboot

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
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// credentialsOfPeers: xivo-ctid-ng too reads its configuration at start only.
// It holds no clients, so it may be restarted for a newcomer.
func credentialsOfPeers(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.PresenceCredentials {
		return nothing, nil
	}
	// The account tells the generation of the secret.
	type credential struct {
		Account string
		UUID    uuid.UUID
	}
	var peers []ctid.Peer
	var read []credential
	for _, m := range n.members {
		peers = append(peers, ctid.Peer{Name: directory.Name(m.UUID), UUID: m.UUID})
		read = append(read, credential{n.Credentials().Account(), m.UUID})
	}
	return all{
		ctid.Credentials(n.Platform, n.Identity().Advertise, n.Credentials().Account(), n.Credentials().DirectoryPassword(), peers),
		rereads(n, "xivo-ctid-ng", "credentials", read, func(m *marks) *string { return &m.Credentials }),
	}, nil
}

// ctidRegistered looks at what xivo-ctid did with its configuration, not at the
// configuration: files that it cannot read are skipped in silence.
func ctidRegistered(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	want := n.Identity().Advertise
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			overridden, err := ctid.Overridden(n.Platform, want)
			if err != nil {
				return nil, err
			}
			if len(overridden) > 0 {
				return nil, fmt.Errorf("xivo-ctid does not take our address: %s in %s comes first and sets another; remove the key there", overridden, platform.CtidConfigDir)
			}
			regs, err := c.LocalServices(ctx)
			if err != nil {
				return nil, err
			}
			r := serviceOf(regs, n.Identity().UUID.String())
			if r.ID == "" {
				// A restart would drop every client, and may be under way: the
				// daemon registers by itself when it can.
				n.pending = true
				return nil, errors.New("xivo-ctid is not registered with this node's UUID (yet); see its log")
			}
			if r.Address == want {
				return nil, nil
			}
			return []string{fmt.Sprintf("xivo-ctid is registered at %s, not at %s", r.Address, want)}, nil
		},
		apply: func(ctx context.Context) error {
			m, err := n.marks()
			if err != nil {
				return err
			}
			if m.CtidRestarted == want {
				return errors.New("a restart did not help; see the log of xivo-ctid")
			}
			// Where it cannot be marked, each pass would restart it.
			if err := n.writeState(marksFile, m); err != nil {
				return err
			}
			if err := n.Platform.Init.Restart(ctx, "xivo-ctid"); err != nil {
				return err
			}
			// Not before: a restart that was cut off has not failed to help.
			m.CtidRestarted = want
			if err := n.writeState(marksFile, m); err != nil {
				return err
			}
			return c.WaitService(ctx, "xivo-ctid", want)
		},
	}, nil
}

// presencesOpened makes the local xivo-ctid look a member up that it may have
// looked for before the member was there: it keeps an empty answer until it is
// restarted or hears of a registration. The announcement is local, and made
// only when messages from that member arrive.
func presencesOpened(ctx context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.CtidAsksPeers {
		return nothing, nil
	}
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	local, err := c.LocalServices(ctx)
	if err != nil {
		return nil, err
	}
	m, err := n.marks()
	if err != nil {
		return nil, err
	}
	// A restarted xivo-ctid has a new id, and may have cached again.
	ours := serviceOf(local, n.Identity().UUID.String())

	type opening struct{ uuid, address, id, key string }
	var missing []opening
	var errs []error
	for _, member := range n.members {
		id := member.UUID.String()
		if _, ok := n.answered[id]; !ok {
			continue
		}
		regs, err := c.Services(ctx, member.Name, "xivo-ctid")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		theirs := serviceOf(regs, id)
		if theirs.ID == "" {
			n.pending = true
			continue
		}
		if key := ours.ID + " " + theirs.ID; m.Presences[id] != key {
			missing = append(missing, opening{id, theirs.Address, theirs.ID, key})
		}
	}
	return resource{
		diff: func(context.Context) ([]string, error) {
			var diff []string
			for _, o := range missing {
				diff = append(diff, "xivo-ctid was not told of the one at "+o.address)
			}
			return diff, errors.Join(errs...)
		},
		apply: func(ctx context.Context) error {
			canary, err := n.Canary(ctx)
			if err != nil {
				return err
			}
			for _, o := range missing {
				if err := canary.AnnounceCtid(ctx, o.uuid, o.id, o.address); err != nil {
					return err
				}
				m.Presences[o.uuid] = o.key
			}
			missing = nil
			return n.writeState(marksFile, m)
		},
	}, nil
}

func serviceOf(regs []consul.Registration, id string) consul.Registration {
	regs = slices.DeleteFunc(slices.Clone(regs), func(r consul.Registration) bool {
		return r.Name != "xivo-ctid" || !slices.Contains(r.Tags, id)
	})
	if len(regs) == 0 {
		return consul.Registration{}
	}
	return slices.MinFunc(regs, func(a, b consul.Registration) int { return cmp.Compare(a.ID, b.ID) })
}
