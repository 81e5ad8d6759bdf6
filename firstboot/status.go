package firstboot

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
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
	Boot     string   `json:"boot"`
	Identity Identity `json:"identity"`
	Version  string   `json:"version"`
	// Peers are the other members of the mesh.
	Peers []PeerStatus `json:"peers"`
	// Refused are nodes that were not taken in, each with the reason.
	Refused []mesh.Refusal `json:"refused,omitempty"`
	// NotManaged are members of Consul's WAN that do not tell who they are.
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
	// Answered says whether the peer answered the canary in the last pass.
	Answered bool `json:"answered"`
	// Milliseconds is how long the answer took.
	Milliseconds int64 `json:"milliseconds,omitempty"`
}

// Waits says why this node keeps out of the mesh for now; "" when it does not.
func (n *Node) Waits(ctx context.Context) string {
	action, why := n.Decide(false)
	switch {
	case action == LeaveAlone && n.Config == nil:
		return fmt.Sprintf("%s (%v); with `identity: keep` in %s, `xivo-firstboot run` makes this server a node", why, cmp.Or(n.DocumentErr, n.noDocument), documentHint)
	case action == LeaveAlone:
		return why + "; `xivo-firstboot run` makes this server a node"
	case action == Hold:
		return why
	case action != Unchanged && n.DocumentErr != nil:
		return fmt.Sprintf("%s; that is still to be done, and cannot be with this document (cloud-init reads a corrected one only with a new instance-id): %v", why, n.DocumentErr)
	case action != Unchanged:
		return why + "; that is still to be done: `xivo-firstboot run` does it, and `journalctl -u xivo-firstboot` says why no boot did"
	case n.Config == nil:
		return fmt.Sprintf("there is no document that can be read: %v", n.DocumentErr)
	case !n.Settled():
		return "settle has not ended; see `journalctl -u xivo-firstboot-settle`"
	}
	if n.hasConverged() {
		return ""
	}
	switch passed, err := n.wizardPassed(ctx); {
	case err != nil:
		return fmt.Sprintf("nothing tells whether XiVO's wizard was passed: %v", err)
	case !passed:
		return "XiVO's wizard has not been passed yet; this goes on by itself when it has"
	}
	return ""
}

// ReadStatus returns the status of the last pass. A node that never converged
// is joining, or waiting for the reason why it did not become.
func (n *Node) ReadStatus(ctx context.Context) (Status, error) {
	var s Status
	if err := n.readState(statusFile, &s); err != nil {
		n.Log.Warn("the next pass writes it anew", "error", err)
		s = Status{}
	}
	if why := n.Waits(ctx); why != "" {
		s.State, s.Why = Waiting, why
	} else if s.Boot != n.Platform.BootID() || s.State == "" {
		s.State, s.Why = Joining, "no pass has ended since this machine was booted"
	}
	s.Identity, s.Version = n.Identity(), n.Platform.Version.String()
	return s, nil
}

// conclude makes the status of a pass that just ended.
func (n *Node) conclude(before Status, errs []error) Status {
	s := Status{
		At:          time.Now().UTC(),
		Boot:        n.Platform.BootID(),
		Identity:    n.Identity(),
		Version:     n.Platform.Version.String(),
		Refused:     n.refused,
		NotManaged:  n.unmanaged,
		Notices:     n.notices,
		FirstJoined: before.FirstJoined,
		FirstPass:   n.firstPass,
		Peers:       []PeerStatus{},
	}
	answered := 0
	for _, m := range n.members {
		took, ok := n.answered[m.UUID.String()]
		if ok {
			answered++
		}
		s.Peers = append(s.Peers, PeerStatus{Member: m, Answered: ok, Milliseconds: took.Milliseconds()})
	}
	if n.DocumentErr != nil {
		s.Errors = append(s.Errors, "the document is not in force, the last good one is: "+n.DocumentErr.Error())
	}
	for _, err := range errs {
		s.Errors = append(s.Errors, err.Error())
	}

	switch {
	case !n.leftAt.IsZero():
		s.State, s.Why = Alone, fmt.Sprintf("this node left the mesh, or was taken out of it, at %s; `xivo-firstboot leave --undo` takes it back", n.leftAt.Local().Format(time.DateTime))
	case n.verdict != "":
		s.State, s.Why = Waiting, n.verdict+"; it goes on alone. The mesh is asked again when this node boots, when its document or version changes, and by `xivo-firstboot converge`"
	case len(n.members) == 0 && !n.hasPeers:
		s.State = Alone
		if n.Identity().NoDocument {
			s.Why = fmt.Sprintf("it was booted without a document; with one in the user data or %s, the next boot or `xivo-firstboot run` makes it a node of a mesh", documentHint)
		}
	case !n.Platform.Traits.Joinable:
		s.State, s.Why = Waiting, fmt.Sprintf("XiVO %s cannot be joined to others: contacts and statuses are shared in another way from 18.04 on; take the peers out of the document", n.Platform.Version)
	case len(n.members) > 0 && answered == len(n.members):
		s.State = Joined
	case len(n.members) > 0 && (answered > 0 || !s.FirstJoined.IsZero()):
		s.State, s.Why = Degraded, unreachable(s.Peers)
	default:
		s.State, s.Why = Joining, "no peer answered yet"
		if len(s.Errors) > 0 {
			s.Why = s.Errors[0]
		}
	}
	if answered > 0 && s.FirstJoined.IsZero() {
		s.FirstJoined = s.At
	}
	return s
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
