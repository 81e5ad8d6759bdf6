package firstboot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// suspendedAfter is how long a member may be unreachable before its source is
// taken out of the contexts: a dead source stalls everybody's lookups.
const suspendedAfter = 10 * time.Minute

// canaryWait is how long a pass waits for the members' answers.
const canaryWait = 3 * time.Second

// marks is what converge remembers between passes and boots.
type marks struct {
	// Directories is the fingerprint of the sources that xivo-dird last read.
	Directories string `json:"directories"`
	// Credentials is that of the members whose credentials xivo-ctid-ng last read.
	Credentials string `json:"credentials,omitempty"`
	// CtidRestarted is the address for which xivo-ctid was restarted: once.
	CtidRestarted string `json:"ctid_restarted,omitempty"`
	// Presences holds, per member, the xivo-ctid registration that was
	// announced to the local xivo-ctid.
	Presences map[string]string `json:"presences"`
}

func (n *Node) marks() (marks, error) {
	m := marks{Presences: map[string]string{}}
	if err := n.readState(marksFile, &m); err != nil {
		// It only saves work: without it, dird is restarted once more.
		n.Log.Warn("beginning anew without it", "error", err)
		m = marks{Presences: map[string]string{}}
	}
	return m, nil
}

func firewallRules(ctx context.Context, n *Node) (Resource, error) {
	if !n.Config.Firewall.Enabled {
		return nothing, nil
	}
	allowed, err := others(ctx, n.Config.Peers)
	if err != nil {
		n.Log.Debug("firewall: peers", "error", err)
	}
	allowed = append(allowed, n.Config.Firewall.Allow...)
	for _, m := range n.members {
		allowed = append(allowed, m.Address)
	}
	// Living WAN members proved that they hold the gossip key; a newcomer is one
	// before it is known as a member.
	if c, err := n.Consul(ctx); err == nil {
		wan, err := c.WANMembers(ctx)
		if err != nil {
			return nil, err
		}
		for _, m := range wan {
			if m.Alive {
				allowed = append(allowed, m.Address)
			}
		}
	}
	slices.Sort(allowed)
	policy := firewall.MeshPolicy(slices.Compact(allowed))
	if !n.Config.Consul.Encrypt {
		policy = policy.WithGossip()
	}
	if n.Config.Firewall.Strict {
		policy = policy.Strict(n.Platform.Traits)
	}
	return firewall.Rules(policy), nil
}

func registered(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	self := n.Self()
	return c.Registered(consul.Registration{
		ID:      mesh.ServiceName,
		Name:    mesh.ServiceName,
		Address: self.Address,
		Tags:    self.Tags(),
	}), nil
}

var webService = withDB(func(n *Node, db *pgx.Conn) Resource {
	return directory.Account(db, n.Platform, n.Credentials().Account(), n.Credentials().DirectoryPassword())
})

// sharing opens a step that only a version takes for which the procedure was
// written. A later one shares nothing with anybody.
func sharing(open func(context.Context, *Node) (Resource, error)) func(context.Context, *Node) (Resource, error) {
	return func(ctx context.Context, n *Node) (Resource, error) {
		if !n.Platform.Traits.Joinable {
			return nothing, nil
		}
		return open(ctx, n)
	}
}

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

func upstreamName(m mesh.Member) string { return directory.Name(m.UUID) }

func upstreams(ctx context.Context, n *Node) (Resource, error) {
	b, err := n.Broker(ctx)
	if err != nil {
		return nil, err
	}
	links, err := mesh.Topology{Kind: n.Config.Topology, Hub: n.Config.Hub}.Desired(n.Self(), n.members)
	if err != nil {
		return nil, err
	}
	found, err := b.Upstreams(ctx)
	if err != nil {
		return nil, err
	}
	// A second link to the same broker would bring every message twice.
	byHand := map[string]string{}
	for _, u := range found {
		for _, host := range u.Hosts {
			if !directory.Ours(u.Name) {
				byHand[host] = u.Name
			}
		}
	}
	var rs all
	wanted := map[string]bool{}
	for _, m := range links.Upstreams {
		if name := byHand[m.Address]; name != "" {
			n.Log.Warn("an upstream made by hand is left as it is, and not doubled", "upstream", name, "peer", m.Host)
			continue
		}
		wanted[upstreamName(m)] = true
		rs = append(rs, b.Upstream(rabbitmq.Upstream{
			Name:     upstreamName(m),
			Host:     m.Address,
			Account:  n.Credentials().Account(),
			Password: n.Credentials().BrokerPassword(),
			MaxHops:  links.MaxHops,
			Links:    len(links.Upstreams),
		}))
	}
	for _, u := range found {
		if directory.Ours(u.Name) && !wanted[u.Name] {
			rs = append(rs, b.NoUpstream(u.Name))
		}
	}
	return rs, nil
}

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
	var rs all
	wanted := map[string]bool{}
	for _, m := range n.members {
		wanted[directory.Name(m.UUID)] = true
		o := options
		o.Suspended = time.Since(m.Seen) > suspendedAfter
		rs = append(rs, directory.Source(db, directory.Peer{UUID: m.UUID, Host: m.Host, Address: m.Address},
			n.Credentials().Account(), n.Credentials().DirectoryPassword(), o))
	}
	found, err := directory.Sources(ctx, db)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if f.Ours && !wanted[f.Name] {
			rs = append(rs, directory.NoSource(db, f.Name))
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

// credentialsOfPeers: xivo-ctid-ng too reads its configuration at start only.
// It holds no clients, so it may be restarted for a newcomer.
func credentialsOfPeers(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.PresenceCredentials {
		return nothing, nil
	}
	var peers []ctid.Peer
	for _, m := range n.members {
		peers = append(peers, ctid.Peer{Name: directory.Name(m.UUID), UUID: m.UUID})
	}
	// The account tells the generation of the secret.
	type told struct {
		Account string
		UUID    uuid.UUID
	}
	var read []told
	for _, p := range peers {
		read = append(read, told{n.Credentials().Account(), p.UUID})
	}
	return all{
		ctid.Credentials(n.Platform, n.Identity().Advertise, n.Credentials().Account(), n.Credentials().DirectoryPassword(), peers),
		rereads(n, "xivo-ctid-ng", "credentials", read, func(m *marks) *string { return &m.Credentials }),
	}, nil
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
			if err := n.Platform.Init.Restart(ctx, service); err != nil {
				return err
			}
			m, err := n.marks()
			if err != nil {
				return err
			}
			*mark(&m) = now
			return n.writeState(marksFile, m)
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
			m.CtidRestarted = want
			if err := n.writeState(marksFile, m); err != nil {
				return err
			}
			if err := n.Platform.Init.Restart(ctx, "xivo-ctid"); err != nil {
				return err
			}
			return c.WaitService(ctx, "xivo-ctid", want)
		},
	}, nil
}

// canaryAnswered sends a message to every member and waits for the answers.
// Nothing can be applied: who does not answer is in the state.
func canaryAnswered(ctx context.Context, n *Node) (Resource, error) {
	canary, err := n.Canary(ctx)
	if err != nil {
		return nil, err
	}
	if len(n.members) == 0 {
		return nothing, nil
	}
	wanted := make([]string, len(n.members))
	for i, m := range n.members {
		wanted[i] = m.UUID.String()
	}
	ctx, cancel := context.WithTimeout(ctx, canaryWait)
	defer cancel()
	answered, err := canary.Ping(ctx, wanted...)
	if err != nil {
		return nil, err
	}
	n.answered = answered
	return nothing, nil
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
