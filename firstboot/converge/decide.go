package converge

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

const (
	// suspendedAfter is how long a member may be unreachable before its source is
	// taken out of the contexts: a dead source stalls everybody's lookups.
	suspendedAfter = 10 * time.Minute
	// letInAfter is how long a living WAN member may not have said who it is, before
	// it is let in to ask us: two meshes that become one know nobody of each other.
	letInAfter = 15 * time.Second
)

// Decision is what follows from a view: the mesh as this node will have it.
type Decision struct {
	// KeepsOut is why this node is not to be in its mesh: it left, or was refused.
	// "": it is to be.
	KeepsOut string
	// LeftAt is when this node left the mesh, or was taken out of it.
	LeftAt time.Time
	// AskAgain: a refusal of before this process may have been put right.
	AskAgain bool
	// Join are the addresses of peers, one of which at least is to be in the WAN.
	Join []string

	Members []mesh.Member
	Refused []mesh.Refusal
	// NotManaged are WAN members that do not tell who they are, or tell of others too.
	NotManaged []string
	// Departed are all nodes that left, as far as anybody tells.
	Departed mesh.Departures
	// TellDeparted are departures to be noted where they are not known.
	TellDeparted []Departure
	// TellRefused are those whom this node is to tell that they are refused.
	TellRefused []mesh.Refusal

	// LetIn are the addresses that may use the ports which we opened.
	LetIn []string
	// Links are the upstreams that the topology wants; LinksErr why that is not
	// known.
	Links    mesh.Links
	LinksErr error
	// ByHand are the hosts of upstreams that an operator made for a member, by its
	// address.
	ByHand map[string][]string

	// Newcomer: not all members may have asked this node yet.
	Newcomer bool
	// Unfinished: somebody has not answered yet, so the next pass is soon.
	Unfinished bool
	Notices    []string
}

// staysOut says that this node keeps out of its mesh: it left, or was refused and
// does not ask again.
func (d Decision) staysOut() bool { return !d.LeftAt.IsZero() || d.KeepsOut != "" && !d.AskAgain }

// Departure says in a datacenter ("" for ours) that a node left.
type Departure struct {
	Datacenter string
	UUID       uuid.UUID
}

// refusal is why the mesh refused this node; "" where it did not. Who has members
// is in the mesh, whatever one of them says; and what was said of another version
// does not count any more.
func (v *View) refusal() string {
	if r := v.Overlay.refusal(); r != "" || len(v.Known) > 0 {
		return r
	}
	for _, by := range slices.Sorted(maps.Keys(v.WAN.Notes.Refusals)) {
		if r := v.WAN.Notes.Refusals[by]; r.Version == v.Self.Version {
			return "refused by " + by + ": this node " + r.Reason
		}
	}
	return ""
}

// leftAt is when this node left; zero where it did not, or came back since.
func (v *View) leftAt() time.Time {
	if st := v.Overlay.Status; st != nil && st.Departed {
		return cmp.Or(st.DepartedAt, v.At)
	}
	if v.WAN.Notes.Departed.Has(v.Self, v.Trusted) {
		return v.WAN.Notes.Departed[v.Self.UUID]
	}
	return time.Time{}
}

// keepsOut is why this node is not to be in its mesh.
func (v *View) keepsOut() string {
	if at := v.leftAt(); !at.IsZero() {
		return at.String()
	}
	return v.refusal()
}

// decide is pure: it says what follows from a view, and from what this process
// knows of earlier ones.
func decide(v *View, m Memory) Decision {
	d := Decision{KeepsOut: v.keepsOut(), LeftAt: v.leftAt(), Departed: mesh.Departures{}, Members: v.Known, Newcomer: m.newcomer}
	// The overlay asks again by itself.
	d.AskAgain = v.refusal() != "" && !m.askedAgain && v.Overlay.Status == nil
	if !d.staysOut() {
		d.Join = v.Peers.Addresses
	}
	d.Departed.Add(v.WAN.Notes.Departed, v.Trusted)
	switch {
	case !v.Joinable:
	case v.Overlay.Status != nil:
		d.overlayMembers(v)
	case v.Overlay.Err != nil:
		// Who is a member is on the disk; nobody is looked for.
		d.Join = nil
	case v.WAN.Err == nil:
		d.merge(v)
	}
	d.LetIn = letIn(v, d)
	d.Links, d.LinksErr = mesh.Topology{Kind: v.Document.Topology, Hub: v.Peers.Hub}.Desired(v.Self, d.Members)
	if v.Peers.HubErr != nil {
		d.LinksErr = v.Peers.HubErr
	}
	d.notice(v)
	return d
}

// merge takes what the WAN tells into what is known.
func (d *Decision) merge(v *View) {
	var seen []mesh.Member
	for i, w := range v.WAN.Living {
		if i >= len(v.WAN.Answers) {
			break // nobody was asked
		}
		a := v.WAN.Answers[i]
		switch {
		case a.Err != nil:
			d.Unfinished = true
		case len(a.Members) == 1:
			seen = append(seen, a.Members[0])
		default:
			d.NotManaged = append(d.NotManaged, w.Name)
		}
		d.Departed.Add(a.Departed, v.Trusted)
	}
	if len(v.Known) == 0 {
		d.Newcomer = v.Peers.Named()
	}
	d.Members, d.Refused = mesh.Merge(v.Self, v.Known, seen, d.Departed, v.At, v.Trusted)
	if !d.LeftAt.IsZero() {
		d.Members = nil
	}
	for i, m := range d.Members {
		d.Members[i].Suspended = suspended(m, v.At, v.FirstPass)
	}
	if len(d.Members) > 0 && len(v.WAN.SilentSince) == 0 {
		d.Newcomer = false
	}

	// Who was taken out while it was away does not know.
	for _, a := range v.WAN.Answers {
		for _, m := range a.Members {
			if d.Departed.Has(m, v.Trusted) && !a.Departed.Has(m, v.Trusted) {
				d.TellDeparted = append(d.TellDeparted, Departure{m.Name, m.UUID})
			}
		}
	}
	// And here, for those that are away.
	for _, id := range slices.SortedFunc(maps.Keys(d.Departed), compareUUID) {
		if noted, ok := v.WAN.Notes.Departed[id]; !ok || mesh.Later(d.Departed[id], noted, v.Trusted) {
			d.TellDeparted = append(d.TellDeparted, Departure{"", id})
		}
	}
	// Of two that are new to each other, the one that was there first tells.
	for _, r := range d.Refused {
		if len(v.Known) > 0 || !mesh.Later(v.Self.Registered, r.Member.Registered, v.Trusted) {
			d.TellRefused = append(d.TellRefused, r)
		}
	}
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

// letIn are who is named by the document, the members, and newcomers so far as they
// have to ask: members ask a newcomer before they know anything of it, and let it
// in when they do.
func letIn(v *View, d Decision) []string {
	allowed := slices.Concat(d.Join, v.Document.Firewall.Allow)
	for _, m := range d.Members {
		allowed = append(allowed, m.Address)
	}
	if !d.staysOut() {
		for _, w := range v.WAN.Living {
			refused := slices.ContainsFunc(d.Refused, func(r mesh.Refusal) bool { return r.Member.Name == w.Datacenter })
			since, silent := v.WAN.SilentSince[w.Address]
			if d.Newcomer && !refused || silent && v.At.Sub(since) > letInAfter {
				allowed = append(allowed, w.Address)
			}
		}
	}
	slices.Sort(allowed)
	return slices.Compact(allowed)
}

// notice collects what a person should know or put right.
func (d *Decision) notice(v *View) {
	say := func(format string, args ...any) { d.Notices = append(d.Notices, fmt.Sprintf(format, args...)) }
	if d.KeepsOut != "" && !d.AskAgain && len(v.WAN.Living) > 0 && v.Marks.LeftWAN == d.KeepsOut {
		say("Consul's WAN still has this node, with %s, whose document may name it as a peer: contacts and statuses are not shared; take it out there", v.WAN.Living[0].Name)
	}
	if v.Joinable {
		d.Notices = append(d.Notices, mesh.SameHost(v.Self, d.Members)...)
	}
	d.ByHand = map[string][]string{}
	for _, m := range d.Links.Upstreams {
		hosts := v.Broker.HostsByAddress[m.Address]
		if len(hosts) == 0 {
			continue
		}
		d.ByHand[m.Address] = hosts
		say("the upstream %s was made by hand for %s (%s): it is left as it is, and not doubled", v.Broker.upstreamOf(hosts[0]), m.Host, m.Address)
	}
	for _, s := range v.Directory.Sources {
		for _, m := range d.Members {
			if !s.OfMesh && slices.Contains(v.Directory.HostsByAddress[m.Address], s.Address) {
				say("the directory %s was made by hand for %s: it is left as it is, and not doubled", s.Name, s.Address)
				break
			}
		}
	}
	d.Notices = append(d.Notices, v.Settings...)
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

func compareUUID(a, b uuid.UUID) int { return bytes.Compare(a[:], b[:]) }
