package converge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// OverlayUnit is the service of the overlay.
const OverlayUnit = "xivo-overlay"

// silence is the age of a handshake after which nothing passes to a member.
const silence = 180 * time.Second

// Overlay is what the mesh's own network tells; it has no status where the mesh has none.
type Overlay struct {
	Status *overlay.Status
	// Members are the peers of the status as members of the mesh, in the same order.
	Members []mesh.Member
	Err     error
}

func (o *Overlay) observe(ctx context.Context, n *node.Node) {
	st, err := n.Overlay().Status(ctx)
	if err != nil {
		o.Err = err
		return
	}
	o.Status = &st
	for _, p := range st.Peers {
		o.Members = append(o.Members, n.MemberOf(p.Member))
	}
}

// reaches says whether packets pass to a member now.
func reaches(p overlay.PeerStatus) bool { return p.Handshake >= 0 && p.Handshake < silence }

// refusal is why the mesh does not let this node in; "" where it does, or has members
// that do.
func (o Overlay) refusal() string {
	if o.Status == nil || slices.ContainsFunc(o.Status.Peers, reaches) {
		return ""
	}
	for _, door := range slices.Sorted(maps.Keys(o.Status.Refused)) {
		return fmt.Sprintf("%s does not let this node in: %s", door, o.Status.Refused[door].Reason)
	}
	return ""
}

// overlayMembers takes the members from the overlay: who is there, and since when it
// has been silent.
func (d *Decision) overlayMembers(v *View) {
	d.Join, d.Members = nil, nil
	known := map[uuid.UUID]time.Time{}
	for _, m := range v.Known {
		known[m.UUID] = m.Seen
	}
	if d.staysOut() {
		return
	}
	for i, p := range v.Overlay.Status.Peers {
		m := v.Overlay.Members[i]
		m.Seen = known[m.UUID]
		if p.Handshake >= 0 {
			if at := v.At.Add(-p.Handshake); at.After(m.Seen) {
				m.Seen = at
			}
		}
		if m.Seen.IsZero() {
			m.Seen = v.At // new, and its time begins
		}
		for _, k := range v.Known {
			if k.UUID == m.UUID {
				m.Suspended = k.Suspended
			}
		}
		m.Suspended = suspended(m, v.At, v.FirstPass)
		d.Members = append(d.Members, m)
		if reaches(p) {
			d.Join = append(d.Join, m.Address)
		} else {
			d.Unfinished = d.Unfinished || !m.Suspended
		}
	}
	for _, w := range v.WAN.Living {
		if !slices.ContainsFunc(v.Overlay.Members, func(m mesh.Member) bool { return m.Name == w.Datacenter }) {
			d.NotManaged = append(d.NotManaged, w.Name)
		}
	}
	d.Notices = append(d.Notices, v.Overlay.Status.Alarms...)
	for _, door := range slices.Sorted(maps.Keys(v.Overlay.Status.Refused)) {
		d.Notices = append(d.Notices, fmt.Sprintf("%s does not let this node in: %s", door, v.Overlay.Status.Refused[door].Reason))
	}
}

// overlayRuns is the service of the overlay running for this document and this version
// of XiVO.
func overlayRuns(p *Pass) engine.Resource {
	n := p.Node
	return p.looksAgain(engine.New(func(ctx context.Context) ([]string, error) {
		st, err := n.Overlay().Status(ctx)
		switch {
		case errors.Is(err, overlay.ErrNotRunning):
			return []string{OverlayUnit + " does not run"}, nil
		case err != nil:
			return nil, err
		case !slices.Equal(st.Asks, n.Config().Peers):
			return []string{OverlayUnit + " asks other peers than the document names"}, nil
		case st.Self.Version != n.Platform.Version.String():
			return []string{OverlayUnit + " tells that this node runs XiVO " + st.Self.Version}, nil
		}
		return nil, nil
	}, func(ctx context.Context) error {
		if err := n.Platform.Init.Restart(ctx, OverlayUnit); err != nil {
			return err
		}
		return awaitOverlay(ctx, n)
	}))
}

// awaitOverlay waits for the service to answer after a restart.
func awaitOverlay(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		_, err := n.Overlay().Status(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; `journalctl -u %s` says why", err, OverlayUnit)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// alive says whether a member answers now, where the membership of each listens. The
// age of its handshake tells that only after minutes.
func alive(ctx context.Context, m mesh.Member) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(m.Address, strconv.Itoa(overlay.MembersPort)))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// overlaySigns are what a change of the overlay shows in.
func overlaySigns(ctx context.Context, n *node.Node) []string {
	st, err := n.Overlay().Status(ctx)
	if err != nil {
		return []string{"overlay: " + err.Error()}
	}
	out := []string{fmt.Sprint("departed ", st.Departed)}
	for _, p := range st.Peers {
		out = append(out, fmt.Sprint(p.UUID, p.Address, p.Version, reaches(p)))
	}
	for door := range st.Refused {
		out = append(out, "refused by "+door)
	}
	return out
}

// silentPeers are the peers of the document that do not answer, each with the reason. One
// that is a member by now is none of them.
func (o Overlay) silentPeers() []string {
	if o.Status == nil || len(o.Status.Peers) > 0 {
		return nil
	}
	var out []string
	for _, peer := range slices.Sorted(maps.Keys(o.Status.Silent)) {
		out = append(out, o.Status.Silent[peer])
	}
	return out
}

// hubMember is the overlay address of the member that has an address of the LAN.
func hubMember(v *View, lan string) (string, error) {
	if lan == v.Self.Address {
		return lan, nil
	}
	if v.Overlay.Status != nil {
		for _, p := range v.Overlay.Status.Peers {
			if p.Address.String() == lan || p.Endpoint.Addr().String() == lan {
				return p.Address.String(), nil
			}
			for _, e := range p.Endpoints {
				if e.Addr().String() == lan {
					return p.Address.String(), nil
				}
			}
		}
	}
	return "", fmt.Errorf("the hub %s is no member that is known yet", lan)
}

// checkOverlay says how each member is reached, and by name what keeps it from that.
func checkOverlay(ctx context.Context, n *node.Node) (Level, string) {
	if !n.HasOverlay() {
		return Skipped, "skipped: the mesh has no network of its own"
	}
	st, err := n.Overlay().Status(ctx)
	if err != nil {
		return Fail, err.Error()
	}
	var bad []string
	bad = append(bad, st.Alarms...)
	for _, p := range st.Peers {
		port := n.Config().Network.Port
		switch {
		case reaches(p):
		case p.Handshake < 0 && p.Greeted >= 0:
			bad = append(bad, fmt.Sprintf("%s answers the hello on TCP %d, and there is no handshake on UDP: UDP %d is blocked between the two", p.Host, port, port))
		case p.Handshake < 0:
			bad = append(bad, fmt.Sprintf("%s was never reached: is it up, and are UDP and TCP %d open to one of the two?", p.Host, port))
		default:
			bad = append(bad, fmt.Sprintf("%s was last reached %s ago at %s: is it up, and are UDP and TCP %d open to one of the two?", p.Host, p.Handshake.Round(time.Second), p.Endpoint, port))
		}
	}
	for _, door := range slices.Sorted(maps.Keys(st.Refused)) {
		bad = append(bad, fmt.Sprintf("%s does not let this node in: %s", door, st.Refused[door].Reason))
	}
	if bad != nil {
		return Fail, strings.Join(bad, "; ")
	}
	return OK, fmt.Sprintf("%s, %d members reached", st.Self.Address, len(st.Peers))
}
