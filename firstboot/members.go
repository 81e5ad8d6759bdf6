package firstboot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

// What nodes tell each other in the KV of a datacenter. It is of this mesh, and
// no copy of the node has it.
const (
	notesPrefix = "xivo-mesh/"
	// goneNotes: a UUID, and when that node left or was forgotten.
	goneNotes = notesPrefix + "gone/"
	// refusedNotes: a member that refused this node, and why.
	refusedNotes = notesPrefix + "refused/"
)

// askWait is how long a newcomer may take to say who it is.
const askWait = 2 * time.Second

// newcomerAskWait is how long a node without members waits: those that have not
// asked it yet do not let it in.
const newcomerAskWait = time.Second

// letInAfter is how long a living WAN member may not have said who it is, before
// it is let in to ask us: two meshes that become one know nobody of each other.
const letInAfter = 15 * time.Second

// verdict is a member's refusal of this node, as it left it here.
type verdict struct {
	Reason  string `json:"reason"`
	Version string `json:"version"` // that was refused
}

// readNotes reads what others left here, once a pass.
func (n *Node) readNotes(ctx context.Context, c *consul.Client) error {
	notes, err := c.Notes(ctx, "", notesPrefix)
	if err != nil {
		return err
	}
	n.gone, n.verdict, n.leftAt = parseGone(notes, "gone/"), "", time.Time{}
	if self := n.Self(); n.gone.Has(self) {
		n.leftAt = n.gone[self.UUID]
	}
	for key, text := range notes {
		by, ok := strings.CutPrefix(key, "refused/")
		if !ok {
			continue
		}
		var v verdict
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			return fmt.Errorf("the refusal of %s in Consul's KV: %w", by, err)
		}
		// Who has members is in the mesh, whatever one of them says; and what was
		// said of another version does not count any more.
		if len(n.members) == 0 && v.Version == n.Platform.Version.String() {
			n.verdict = "refused by " + by + ": this node " + v.Reason
		}
	}
	return nil
}

func parseGone(notes map[string]string, prefix string) mesh.Departures {
	gone := mesh.Departures{}
	for key, text := range notes {
		id, err := uuid.Parse(strings.TrimPrefix(key, prefix))
		if err != nil || !strings.HasPrefix(key, prefix) {
			continue
		}
		if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
			gone[id] = at
		}
	}
	return gone
}

// peers are the addresses of the document's peers that are not this node; none
// for a node that keeps out.
func (n *Node) peers(ctx context.Context) ([]string, error) {
	if n.out() {
		return nil, nil
	}
	return others(ctx, n.Config.Peers)
}

// out says whether this node keeps out of its mesh: it left, or was refused.
func (n *Node) out() bool { return n.verdict != "" || !n.leftAt.IsZero() }

// inWAN: this node is in Consul's WAN with its peers, or, when it left the mesh
// or the mesh refused it, is not.
func inWAN(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.readNotes(ctx, c); err != nil {
		return nil, err
	}
	if n.verdict != "" && !n.asked {
		// What was refused may be put right by now: each start asks once more.
		return resource{
			diff: func(context.Context) ([]string, error) {
				if n.verdict == "" {
					return nil, nil
				}
				return []string{"the mesh is asked again: this node was " + n.verdict}, nil
			},
			apply: func(ctx context.Context) error {
				n.asked, n.verdict = true, ""
				if err := n.mark(func(m *marks) { m.LeftWAN = "" }); err != nil {
					return err
				}
				return c.RemoveNotes(ctx, refusedNotes)
			},
		}, nil
	}
	n.asked = true
	if n.out() {
		return outOfWAN(n, c), nil
	}
	peers, err := n.peers(ctx)
	if len(peers) == 0 {
		return nothing, err
	}
	return c.JoinedWAN(peers), nil
}

// outOfWAN is this node having left the WAN, also after Consul's next start: once
// for each reason, since those whose document names it may bring it back.
func outOfWAN(n *Node, c *consul.Client) Resource {
	why := n.verdict
	if !n.leftAt.IsZero() {
		why = n.leftAt.String()
	}
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			wan, err := n.livingOthers(ctx, c)
			if err != nil || len(wan) == 0 {
				return nil, err
			}
			m, err := n.marks()
			if err != nil {
				return nil, err
			}
			if m.LeftWAN == why {
				n.notice("Consul's WAN still has this node, with %s, whose document may name it as a peer: contacts and statuses are not shared; take it out there", wan[0].Name)
				return nil, nil
			}
			return []string{"this node is still in Consul's WAN, with " + wan[0].Name}, nil
		},
		apply: func(ctx context.Context) error {
			// First the ports and the file, or others and its own start would bring it
			// back at once. The firewall's own step tells what is wrong with it.
			n.members = nil
			if rules, err := firewallRules(ctx, n); err == nil {
				if err := ensure(ctx, rules); err != nil {
					n.Log.Debug("leave the WAN with its ports open", "error", err)
				}
			}
			if err := ensure(ctx, n.consulFile(nil)); err != nil {
				return err
			}
			// From here on Consul is down until it is started, by the next pass if not
			// by this one.
			if err := n.mark(func(m *marks) { m.LeavingWAN, m.LeftWAN = true, why }); err != nil {
				return err
			}
			if err := c.Leave(ctx); err != nil {
				return err
			}
			return n.endLeaving(ctx)
		},
	}
}

// restartTime is how long Consul may take to stop and to start.
const restartTime = time.Minute

// endLeaving starts Consul again after it left, with nobody in its memory. It
// does so also when ctx ends meanwhile.
func (n *Node) endLeaving(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), restartTime)
	defer cancel()
	err := n.Platform.Init.Stop(ctx, "consul")
	if err == nil {
		err = consul.ForgetWAN(n.Platform)
	}
	if err = errors.Join(err, n.Platform.Init.Start(ctx, "consul")); err != nil {
		return fmt.Errorf("start Consul again, which left the WAN: %w", err)
	}
	n.reset()
	c, err := n.Consul(ctx)
	if err != nil {
		return err
	}
	if err := c.WaitLeader(ctx); err != nil {
		return err
	}
	return n.mark(func(m *marks) { m.LeavingWAN = false })
}

// answer is what a datacenter of the WAN says.
type answer struct {
	members []mesh.Member
	gone    mesh.Departures
	err     error
}

// membersKnown asks every datacenter of the WAN who it is, and takes newcomers
// in. A datacenter that does not answer keeps the place that it has.
func membersKnown(ctx context.Context, n *Node) (Resource, error) {
	c, err := n.Consul(ctx)
	if err != nil {
		return nil, err
	}
	var wan []consul.Member
	if !n.out() {
		if wan, err = n.livingOthers(ctx, c); err != nil {
			return nil, err
		}
	}
	answers := make([]answer, len(wan))
	var wg sync.WaitGroup
	for i, w := range wan {
		wg.Go(func() { answers[i] = n.ask(ctx, c, w) })
	}
	wg.Wait()

	var seen []mesh.Member
	gone := mesh.Departures{}
	gone.Add(n.gone)
	unanswered := map[string]time.Time{}
	for i, w := range wan {
		a := answers[i]
		switch {
		case a.err != nil:
			n.Log.Debug("a WAN member does not answer", "member", w.Name, "error", a.err)
			n.pending = true
			unanswered[w.Address] = time.Now()
			if since, ok := n.unanswered[w.Address]; ok {
				unanswered[w.Address] = since
			}
		case len(a.members) == 0:
			n.unmanaged = append(n.unmanaged, w.Name)
		}
		seen = append(seen, a.members...)
		gone.Add(a.gone)
	}
	n.unanswered, n.wan = unanswered, wan
	if len(n.members) == 0 {
		n.onTrial = n.hasPeers
	}

	now := time.Now().UTC()
	known := n.members
	n.members, n.refused = mesh.Merge(n.Self(), known, seen, gone, now)
	if !n.leftAt.IsZero() {
		n.members = nil
	}
	for i, m := range n.members {
		n.members[i].Suspended = n.suspended(m, now)
	}
	if len(n.members) > 0 && len(unanswered) == 0 {
		n.onTrial = false
	}
	n.notices = append(n.notices, mesh.SameHost(n.Self(), n.members)...)
	next := n.members
	// Who was taken out while it was away does not know.
	var away []goneNote
	for _, a := range answers {
		for _, m := range a.members {
			if gone.Has(m) && !a.gone.Has(m) {
				away = append(away, goneNote{m.Name, m.UUID})
			}
		}
	}
	return all{
		resource{
			diff: func(context.Context) ([]string, error) {
				var onDisk []mesh.Member
				if err := n.readState(membersFile, &onDisk); err != nil {
					return nil, err
				}
				return memberDiff(onDisk, next, gone), nil
			},
			apply: func(context.Context) error { return n.writeState(membersFile, next) },
		},
		n.toldGone(c, gone, away),
		n.toldRefused(c, known),
	}, nil
}

// livingOthers are the living members of the WAN that are not this node.
func (n *Node) livingOthers(ctx context.Context, c *consul.Client) ([]consul.Member, error) {
	wan, err := c.WANMembers(ctx)
	return slices.DeleteFunc(wan, func(w consul.Member) bool {
		return !w.Alive || w.Datacenter == n.Identity().Name
	}), err
}

func (n *Node) ask(ctx context.Context, c *consul.Client, w consul.Member) (a answer) {
	wait := askWait
	if len(n.members) == 0 {
		wait = newcomerAskWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var regs []consul.Registration
	if regs, a.err = c.Services(ctx, w.Datacenter, mesh.ServiceName); a.err != nil {
		return a
	}
	for _, r := range regs {
		m, err := mesh.ParseMember(w.Datacenter, r.Address, r.Tags)
		if err != nil {
			n.Log.Warn("a member's registration is unusable", "member", w.Name, "error", err)
			continue
		}
		a.members = append(a.members, m)
	}
	var notes map[string]string
	if notes, a.err = c.Notes(ctx, w.Datacenter, goneNotes); a.err == nil {
		a.gone = parseGone(notes, "")
	}
	return a
}

// suspended says whether nobody is to wait for the member any more. One that is
// silent after our own absence gets its time again.
func (n *Node) suspended(m mesh.Member, now time.Time) bool {
	silent := now.Sub(m.Seen)
	if since := now.Sub(n.firstPass); since < silent && !m.Suspended {
		silent = since
	}
	return silent > suspendedAfter
}

// goneNote says in a datacenter ("" for ours) that a node is gone.
type goneNote struct {
	datacenter string
	id         uuid.UUID
}

// toldGone keeps here, for those that were away, who is gone, and tells missing.
func (n *Node) toldGone(c *consul.Client, gone mesh.Departures, missing []goneNote) Resource {
	for id, at := range gone {
		if at.After(n.gone[id]) {
			missing = append(missing, goneNote{"", id})
		}
	}
	return resource{
		diff: func(context.Context) ([]string, error) {
			var diff []string
			for _, m := range missing {
				diff = append(diff, fmt.Sprintf("%s left the mesh, which %s does not know yet", m.id, cmp.Or(m.datacenter, "this node")))
			}
			return diff, nil
		},
		apply: func(ctx context.Context) error {
			for _, m := range missing {
				if err := c.SetNote(ctx, m.datacenter, goneNotes+m.id.String(), gone[m.id].Format(time.RFC3339Nano)); err != nil {
					return err
				}
			}
			missing = nil
			return nil
		},
	}
}

// toldRefused tells those that are refused, who cannot ask us for the reason.
// Of two that are new to each other, the one that was there first tells.
func (n *Node) toldRefused(c *consul.Client, known []mesh.Member) Resource {
	mine := refusedNotes + n.Identity().Name
	told := func(ctx context.Context, r mesh.Refusal) (string, bool, error) {
		text, err := json.Marshal(verdict{Reason: r.Reason, Version: r.Member.Version})
		if err != nil {
			return "", false, err
		}
		notes, err := c.Notes(ctx, r.Member.Name, mine)
		return string(text), notes[""] == string(text), err
	}
	var rs all
	for _, r := range n.refused {
		if len(known) == 0 && n.Self().Registered.After(r.Member.Registered) {
			continue
		}
		rs = append(rs, resource{
			diff: func(ctx context.Context) ([]string, error) {
				if _, done, err := told(ctx, r); done || err != nil {
					return nil, err
				}
				return []string{r.Member.String() + " is not told yet that it is refused: it " + r.Reason}, nil
			},
			apply: func(ctx context.Context) error {
				text, _, err := told(ctx, r)
				if err != nil {
					return err
				}
				return c.SetNote(ctx, r.Member.Name, mine, text)
			},
		})
	}
	return rs
}

// memberDiff tells what changed in the mesh. When a member was last seen is
// written along, but is no change.
func memberDiff(have, want []mesh.Member, gone mesh.Departures) []string {
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
		case gone.Has(m):
			diff = append(diff, m.String()+" left")
		default:
			diff = append(diff, m.String()+" is no member any more")
		}
	}
	return diff
}

// hub is the address of the document's hub, as members have it.
func (n *Node) hub(ctx context.Context) (string, error) {
	hub := n.Config.Hub
	if _, err := netip.ParseAddr(hub); err == nil || hub == "" {
		return hub, nil
	}
	others, err := others(ctx, []string{hub})
	switch {
	case err != nil:
		return "", fmt.Errorf("the hub: %w", err)
	case len(others) == 0:
		return n.Identity().Advertise, nil // the name is our own
	}
	return others[0], nil
}
