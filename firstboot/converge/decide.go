package converge

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// suspendedAfter is how long a member may be unreachable before its source is taken
// out of the contexts: a dead source stalls everybody's lookups.
const suspendedAfter = 10 * time.Minute

// Decision is what follows from a view: the mesh as this node will have it.
type Decision struct {
	// KeepsOut is why this node is not to be in its mesh: it left, or was refused.
	// "": it is to be.
	KeepsOut string
	// Left: this node left its mesh, or was taken out of it. LeftAt is when, as that was
	// told; zero where nobody told it.
	Left   bool
	LeftAt time.Time

	Members []mesh.Member
	// Join are the addresses of the members that are reached now: each is to be in
	// Consul's WAN.
	Join []string
	// NotManaged are WAN members that are none of the mesh.
	NotManaged []string

	// Links are the upstreams that the topology wants; LinksErr why that is not
	// known.
	Links    mesh.Links
	LinksErr error
	// ByHand are the hosts of upstreams that an operator made for a member, by its
	// address.
	ByHand map[string][]string

	// Taken are the addresses of the mesh's network that others have, where one of them is
	// this node's own, and it never was a member.
	Taken []netip.Addr

	// Unfinished: a member is not reached, so the next pass is soon.
	Unfinished bool
	Notices    []string
}

// decide is pure: it says what follows from a view.
func decide(v *View) Decision {
	d := Decision{Members: v.Known}
	if v.Joinable && v.Overlay.Status != nil {
		d.follow(v)
	}
	d.Links, d.LinksErr = mesh.Topology{Kind: v.Document.Topology, Hub: v.hub(d.Members)}.Desired(v.Self, d.Members)
	if v.Peers.HubErr != nil {
		d.LinksErr = v.Peers.HubErr
	}
	d.notice(v)
	return d
}

// follow takes over what the mesh's network tells. Its silence removes nobody: members
// go when they left, or when this node keeps out.
func (d *Decision) follow(v *View) {
	st := v.Overlay.Status
	d.KeepsOut, d.Left, d.LeftAt = v.keepsOut()
	d.Notices = append(d.Notices, st.Alarms...)
	for _, door := range slices.Sorted(maps.Keys(st.Refused)) {
		if reason := refusedBy(door, st.Refused[door]); reason != d.KeepsOut {
			d.Notices = append(d.Notices, reason)
		}
	}
	if len(v.Known)+len(st.Peers) == 0 {
		for _, r := range st.Refused {
			if r.Why == overlay.AddressTaken {
				d.Taken = append(d.Taken, r.Taken...)
			}
		}
		slices.SortFunc(d.Taken, netip.Addr.Compare)
		d.Taken = slices.Compact(d.Taken)
	}
	for _, w := range v.WAN.Living {
		if !slices.ContainsFunc(v.Overlay.Members, func(m mesh.Member) bool { return m.Name == w.Datacenter }) {
			d.NotManaged = append(d.NotManaged, w.Name)
		}
	}
	d.Members = nil
	if d.KeepsOut != "" {
		return
	}
	known := map[uuid.UUID]mesh.Member{}
	for _, m := range v.Known {
		known[m.UUID] = m
	}
	for i, p := range st.Peers {
		m := v.Overlay.Members[i]
		m.Seen, m.Suspended = known[m.UUID].Seen, known[m.UUID].Suspended
		delete(known, m.UUID)
		switch {
		case p.Handshake >= 0:
			m.Seen = latest(m.Seen, v.At.Add(-p.Handshake))
		case p.Reached, m.Seen.IsZero():
			m.Seen = v.At // a new one's time begins
		}
		if p.Reached {
			d.Join = append(d.Join, m.Address)
		}
		d.Members = append(d.Members, m)
	}
	for _, m := range v.Known {
		if _, untold := known[m.UUID]; untold && !slices.Contains(st.Departures, m.UUID) {
			d.Members = append(d.Members, m)
		}
	}
	for i, m := range d.Members {
		d.Members[i].Suspended = suspended(m, v.At, v.FirstPass)
		d.Unfinished = d.Unfinished || !d.Members[i].Suspended && !slices.Contains(d.Join, m.Address)
	}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// keepsOut is why this node is not to be in its mesh, and whether it left. A member that
// others reach is in it, whatever somebody says. One that nobody reaches stays, too, as
// long as nobody says that it left: who refuses it for another reason may be of another
// mesh.
func (v *View) keepsOut() (why string, left bool, at time.Time) {
	st := v.Overlay.Status
	if st.Departed {
		return "this node left at " + st.DepartedAt.String(), true, st.DepartedAt
	}
	if slices.ContainsFunc(st.Peers, func(p overlay.PeerStatus) bool { return p.Reached }) {
		return "", false, time.Time{}
	}
	for _, door := range slices.Sorted(maps.Keys(st.Refused)) {
		if r := st.Refused[door]; r.Why == overlay.Departed || len(v.Known)+len(st.Peers) == 0 {
			return refusedBy(door, r), r.Why == overlay.Departed, time.Time{}
		}
	}
	return "", false, time.Time{}
}

func refusedBy(door string, r *overlay.Refusal) string {
	return fmt.Sprintf("%s does not let this node in: %s", door, r.Reason)
}

// hub is the address in the mesh of the document's hub, or the one that is known of it
// where it is nobody's yet.
func (v *View) hub(members []mesh.Member) string {
	if m, ok := mesh.Of(v.Peers.Hub, members); ok {
		return m.Address
	}
	return v.Peers.Hub
}

// suspended says whether nobody is to wait for the member any more. One that is
// silent after our own absence gets its time again.
func suspended(m mesh.Member, now, firstPass time.Time) bool {
	silent := now.Sub(m.Seen)
	if since := now.Sub(firstPass); since < silent && !m.Suspended {
		silent = since
	}
	return silent > suspendedAfter
}

// notice collects what a person should know or put right.
func (d *Decision) notice(v *View) {
	say := func(format string, args ...any) { d.Notices = append(d.Notices, fmt.Sprintf(format, args...)) }
	if d.KeepsOut != "" && len(v.WAN.Living) > 0 && v.Marks.LeftWAN == d.KeepsOut {
		say("Consul's WAN still has this node, with %s: contacts and statuses are not shared; take it out there", v.WAN.Living[0].Name)
	}
	if v.Joinable {
		d.Notices = append(d.Notices, mesh.SameHost(v.Self, d.Members)...)
	}
	d.ByHand = map[string][]string{}
	for _, m := range d.Links.Upstreams {
		hosts := hostsOf(m, d.Members, v.Broker.HostsByAddress)
		if len(hosts) == 0 {
			continue
		}
		d.ByHand[m.Address] = hosts
		say("the upstream %s was made by hand for %s (%s): it is left as it is, and not doubled", v.Broker.upstreamOf(hosts[0]), m.Host, m.Address)
	}
	for _, s := range v.Directory.Sources {
		for _, m := range d.Members {
			if !s.OfMesh && slices.Contains(hostsOf(m, d.Members, v.Directory.HostsByAddress), s.Address) {
				say("the directory %s was made by hand for %s: it is left as it is, and not doubled", s.Name, s.Address)
				break
			}
		}
	}
	d.Notices = append(d.Notices, v.Settings...)
}

// hostsOf are those of the hosts by address that lead to one of these members, in the mesh
// or outside it: an operator wrote an address that the machine had before.
func hostsOf(m mesh.Member, members []mesh.Member, byAddress map[string][]string) (hosts []string) {
	for _, a := range append([]string{m.Address}, m.Outside...) {
		if is, ok := mesh.Of(a, members); ok && is.UUID == m.UUID {
			hosts = append(hosts, byAddress[a]...)
		}
	}
	return hosts
}

// upstreamOf is the operator's upstream that has a host.
func (b Broker) upstreamOf(host string) string {
	for _, u := range b.Upstreams {
		if !directory.OfMesh(u.Name) && slices.Contains(u.Hosts, host) {
			return u.Name
		}
	}
	return ""
}
