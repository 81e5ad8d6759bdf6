package converge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// State is what a node is in the mesh.
type State string

const (
	// Alone: no peer is known.
	Alone State = "alone"
	// Joining: peers are known, and none answered yet.
	Joining State = "joining"
	// Joined: a message went to every member and back.
	Joined State = "joined"
	// Degraded: joined, and some member is unreachable.
	Degraded State = "degraded"
	// Waiting: for the wizard, or for a person; Why says which.
	Waiting State = "waiting"
)

// Status is what a node says about itself. It is written at the end of every
// pass, and is the JSON of `status --json`.
type Status struct {
	State State     `json:"state"`
	Why   string    `json:"why,omitempty"`
	At    time.Time `json:"at"`
	// Boot is the boot in which the pass was made; a status of an earlier one
	// says nothing about now.
	Boot     string        `json:"boot"`
	Identity node.Identity `json:"identity"`
	Version  string        `json:"version"`
	// Address is the one that the other members have of this node.
	Address string `json:"address"`
	// Peers are the other members of the mesh.
	Peers []PeerStatus `json:"peers"`
	// NotManaged are members of Consul's WAN that are none of the mesh.
	NotManaged []string `json:"not_managed,omitempty"`
	// Notices are what a person should know or put right; the mesh works.
	Notices []string `json:"notices,omitempty"`
	// FirstJoined is when this instance was joined for the first time.
	FirstJoined time.Time `json:"first_joined,omitzero"`
	// FirstPass is when the first pass of this boot was made.
	FirstPass time.Time `json:"first_pass,omitzero"`
	// Errors are what the last pass could not do.
	Errors []string `json:"errors,omitempty"`
}

// PeerStatus is one other member.
type PeerStatus struct {
	mesh.Member
	// Handshake is how long ago the last one was in the mesh's own network; negative
	// where there never was one, and in a network that an operator brought.
	Handshake time.Duration `json:"handshake,omitempty"`
	// Answered says whether the peer answered the canary in the last pass.
	Answered bool `json:"answered"`
	// Milliseconds is how long the answer took.
	Milliseconds int64 `json:"milliseconds,omitempty"`
}

// Waits says why this node keeps out of the mesh for now; "" when it does not.
func Waits(ctx context.Context, n *node.Node) string {
	action, why := n.Decide(false)
	d := n.Document
	switch {
	case action == node.LeaveAlone && d.Config == nil:
		return fmt.Sprintf("%s (%v); with `identity: keep` in %s, `xivo-firstboot run` makes this server a node", why, cmp.Or(d.Err, d.Missing), node.DocumentHint)
	case action == node.LeaveAlone:
		return why + "; `xivo-firstboot run` makes this server a node"
	case action == node.InDoubt:
		return why
	case action != node.Unchanged && d.Err != nil:
		return fmt.Sprintf("%s; that is still to be done, and cannot be with this document (cloud-init reads a corrected one only with a new instance-id): %v", why, d.Err)
	case action != node.Unchanged:
		return why + "; that is still to be done: `xivo-firstboot run` does it, and `journalctl -u xivo-firstboot` says why no boot did"
	case d.Config == nil:
		return fmt.Sprintf("there is no document that can be read: %v", d.Err)
	case !n.Journal.Settled():
		return "settle has not ended; see `journalctl -u xivo-firstboot-settle`"
	}
	if _, err := n.KeptAddress(); errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("this node keeps no address in the mesh's network: restore %s from a backup; one that became before meshes had a network has none, so boot another in its place", node.MeshDir)
	} else if err != nil {
		return err.Error()
	}
	switch {
	case n.Converged():
		// The wizard was passed then, and whatever is down now is no reason to wait
		// for it again.
		return ""
	}
	switch passed, err := n.WizardPassed(ctx); {
	case err != nil:
		return fmt.Sprintf("nothing tells whether XiVO's wizard was passed: %v", err)
	case !passed:
		return "XiVO's wizard has not been passed yet; this goes on by itself when it has"
	}
	return ""
}

// ReadStatus returns the status of the last pass. A node that never converged
// is joining, or waiting for the reason why it did not become.
func ReadStatus(ctx context.Context, n *node.Node) Status {
	var s Status
	if err := n.ReadState(node.StatusFile, &s); err != nil {
		n.Log.Warn("the next pass writes it anew", "error", err)
		s = Status{}
	}
	if why := Waits(ctx, n); why != "" {
		s.State, s.Why = Waiting, why
	} else if s.Boot != n.Platform.BootID() || s.State == "" {
		s.State, s.Why = Joining, "no pass has ended since this machine was booted"
	}
	s.Identity, s.Version = n.Identity(), n.Platform.Version.String()
	if s.Address == "" && n.Journal != nil {
		s.Address = n.Address()
	}
	return s
}

// conclude makes the status of a pass that just ended; failed joins the errors of
// its steps.
func (p *Pass) conclude(before Status, failed error) Status {
	n, v, d := p.Node, p.View, p.Decision
	s := Status{
		At:          time.Now().UTC(),
		Boot:        n.Platform.BootID(),
		Identity:    n.Identity(),
		Version:     v.Self.Version,
		Address:     v.Self.Address,
		NotManaged:  d.NotManaged,
		Notices:     d.Notices,
		FirstJoined: before.FirstJoined,
		FirstPass:   v.FirstPass,
		Peers:       []PeerStatus{},
	}
	answered := 0
	for _, m := range d.Members {
		took, ok := p.answers[m.UUID.String()]
		if ok {
			answered++
		}
		peer := PeerStatus{Member: m, Answered: ok, Milliseconds: took.Milliseconds()}
		if v.Overlay.Status != nil {
			for _, o := range v.Overlay.Status.Peers {
				if o.UUID == m.UUID {
					peer.Handshake = o.Handshake
				}
			}
		}
		s.Peers = append(s.Peers, peer)
	}
	if n.Document.Err != nil {
		s.Errors = append(s.Errors, "the document is not in force, the last good one is: "+n.Document.Err.Error())
	}
	s.Errors = append(s.Errors, v.Overlay.silentPeers()...)
	for _, err := range unjoin(failed) {
		s.Errors = append(s.Errors, err.Error())
	}
	s.State, s.Why = p.state(s, answered)
	if answered > 0 && s.FirstJoined.IsZero() {
		s.FirstJoined = s.At
	}
	return s
}

// state is what the node is, and why.
func (p *Pass) state(s Status, answered int) (State, string) {
	n, v, d := p.Node, p.View, p.Decision
	members := len(d.Members)
	switch {
	case d.Left && d.LeftAt.IsZero():
		return Alone, "this node left the mesh, or was taken out of it; `xivo-firstboot leave --undo` takes it back"
	case d.Left:
		return Alone, fmt.Sprintf("this node left the mesh, or was taken out of it, at %s; `xivo-firstboot leave --undo` takes it back", d.LeftAt.Local().Format(time.DateTime))
	case d.KeepsOut != "":
		return Waiting, d.KeepsOut + "; it goes on alone, and asks again twice a minute"
	case members == 0 && !v.Peers.Named() && n.Identity().NoDocument:
		return Alone, fmt.Sprintf("it was booted without a document; with one in the user data or %s, the next boot or `xivo-firstboot run` makes it a node of a mesh", node.DocumentHint)
	case members == 0 && !v.Peers.Named():
		return Alone, ""
	case !v.Joinable:
		return Waiting, fmt.Sprintf("XiVO %s cannot be joined to others: contacts and statuses are shared in another way from 18.04 on; take the peers out of the document", v.Self.Version)
	case members > 0 && answered == members:
		return Joined, ""
	case members > 0 && (answered > 0 || !s.FirstJoined.IsZero()):
		return Degraded, unreachable(s.Peers)
	case len(s.Errors) > 0:
		return Joining, s.Errors[0]
	}
	return Joining, "no peer answered yet"
}

// unjoin are the errors that were joined, one by one.
func unjoin(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if err == nil {
			return nil
		}
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, unjoin(e)...)
	}
	return all
}

func unreachable(peers []PeerStatus) string {
	why := "no answer from"
	for _, p := range peers {
		if !p.Answered {
			why += " " + p.Host + " (" + p.Address + ")"
		}
	}
	return why
}
