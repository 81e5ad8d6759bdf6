package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Files of ours below platform.StateDir. All are root's alone.
const (
	journalFile  = platform.StateDir + "/journal.json"
	DocumentFile = platform.StateDir + "/document.yml"
	LockFile     = platform.StateDir + "/lock"
	ManifestFile = platform.StateDir + "/seal.json"
	MembersFile  = platform.StateDir + "/members.json"
	// MembershipFile is how often this node registered.
	MembershipFile = platform.StateDir + "/membership.json"
	StatusFile     = platform.StateDir + "/status.json"
	MarksFile      = platform.StateDir + "/marks.json"
	// MeshDir has what opens the mesh; RootFile is what the secret was stretched to.
	MeshDir  = platform.StateDir + "/mesh"
	RootFile = MeshDir + "/root.json"
	// TakenFile has addresses of the mesh's network that others have, one of them this
	// node's own, which never was a member: it becomes again with another.
	TakenFile = platform.StateDir + "/taken.json"
	// overlaySocket is where the service of the overlay is asked.
	overlaySocket = "/run/xivo-firstboot/overlay.sock"
)

// ReadState reads one of our JSON files; a missing one leaves v as it is. A
// damaged one is an error that names it.
func (n *Node) ReadState(file string, v any) error {
	raw, err := limit.ReadFile(n.Platform.Path(file), limit.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s is damaged: %w", file, err)
	}
	return nil
}

// WriteState writes one, which is on the disk when it returns.
func (n *Node) WriteState(file string, v any) error { return writeJSON(n.Platform.Path(file), v) }

func writeJSON(name string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return files.WriteFile(name, append(raw, '\n'), files.Private())
}

// RemoveState removes some; one that is not there is as wanted.
func (n *Node) RemoveState(names ...string) error {
	for _, name := range names {
		if err := os.Remove(n.Platform.Path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// MakeStateDir makes the folder of these files, for root alone.
func (n *Node) MakeStateDir() error { return os.MkdirAll(n.Platform.Path(platform.StateDir), 0o700) }

// ForgetMesh drops what the node of a copied journal knew of its mesh.
func (n *Node) ForgetMesh() error {
	if err := n.RemoveState(MembersFile, MembershipFile, StatusFile, MarksFile); err != nil {
		return err
	}
	return os.RemoveAll(n.Platform.Path(MeshDir))
}

// Converged says whether this instance has ended a pass of converge.
func (n *Node) Converged() bool {
	_, err := os.Stat(n.Platform.Path(StatusFile))
	return err == nil
}

// Membership is this node's coming and going.
type Membership struct {
	// Registrations counts when this node came into its mesh: it became, or came back.
	// Members compare counters, and believe no clock.
	Registrations uint64 `json:"registrations,omitempty"`
}

// Membership reads it. A node that never left registered once.
func (n *Node) Membership() (Membership, error) {
	m := Membership{Registrations: 1}
	return m, n.ReadState(MembershipFile, &m)
}
