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

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// OverlayUnit is the service of the mesh's network.
const OverlayUnit = "xivo-overlay"

// Overlay is what the service of the mesh's network tells.
type Overlay struct {
	// Status is nil where it does not answer, and Err is why.
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
	}, func(ctx context.Context) error { return restartOverlay(ctx, n) }))
}

func restartOverlay(ctx context.Context, n *node.Node) error {
	if err := n.Platform.Init.Restart(ctx, OverlayUnit); err != nil {
		return err
	}
	return awaitOverlay(ctx, n)
}

// addressFree is that no other member has this node's address. A node that never was a
// member notes the addresses that are taken, and the next boot, or a run, draws another;
// one that was a member keeps its own, and a person decides.
func addressFree(p *Pass) engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		noted, err := p.Node.Taken()
		switch {
		case err != nil:
			return nil, err
		case len(noted) > 0 && len(p.Decision.Members) > 0:
			return []string{"the note that another member has this node's address is of before"}, nil
		case len(p.Decision.Taken) == 0 || len(noted) > 0:
			return nil, nil
		}
		return []string{"another member has this node's address " + p.View.Self.Address}, nil
	}, func(context.Context) error {
		if len(p.Decision.Members) > 0 {
			return p.Node.RemoveState(node.TakenFile)
		}
		return p.Node.WriteState(node.TakenFile, p.Decision.Taken)
	})
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
		out = append(out, fmt.Sprint(p.UUID, p.Address, p.Version, p.Reached))
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

// checkOverlay says how each member is reached, and by name what keeps it from that.
func checkOverlay(ctx context.Context, n *node.Node) (Level, string) {
	if n.Config() == nil || n.Journal == nil {
		return Skipped, "skipped: this machine is no node"
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
		case p.Reached:
		case !n.OwnNetwork():
			bad = append(bad, fmt.Sprintf("%s (%s) is not reached: is it up, does %s lead to it, and are TCP %d and TCP and UDP %d open there?", p.Host, p.Address, n.Config().Network.Interface, port, overlay.MembersPort))
		case p.Handshake < 0 && p.Greeted >= 0:
			bad = append(bad, fmt.Sprintf("%s answers the hello on TCP %d, and there is no handshake on UDP: UDP %d is blocked between the two", p.Host, port, port))
		case p.Handshake < 0:
			bad = append(bad, fmt.Sprintf("%s was never reached: is it up, and are UDP and TCP %d open to one of the two?", p.Host, port))
		default:
			bad = append(bad, fmt.Sprintf("%s was last reached %s ago at %s: is it up, and are UDP and TCP %d open to one of the two?", p.Host, p.Handshake.Round(time.Second), p.Endpoint, port))
		}
	}
	for _, door := range slices.Sorted(maps.Keys(st.Refused)) {
		bad = append(bad, refusedBy(door, st.Refused[door]))
	}
	if bad != nil {
		return Fail, strings.Join(bad, "; ")
	}
	return OK, fmt.Sprintf("%s, %d members reached", st.Self.Address, len(st.Peers))
}
