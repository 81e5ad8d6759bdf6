package node

import (
	"errors"
	"fmt"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// DocumentHint is where a person puts a document on a running machine.
const DocumentHint = cloudinit.ConfigFile

// Document is what the user wrote, and what of it is in force.
type Document struct {
	// Config is in force: the user's, or the last good one. Nil where there is
	// neither.
	Config *cloudinit.Config
	// Err is why the user's is not in force.
	Err error
	// Missing is where one was looked for in vain, which is no error.
	Missing error
	// Pending is the first document of a node that became without one: it is in
	// force from the next become on.
	Pending *cloudinit.Config
}

// readDocument prefers the user's document, and falls back to the last good one of
// an instance that became with it.
func (n *Node) readDocument() Document {
	var d Document
	given, err := cloudinit.Load(n.Platform.Root)
	switch {
	case err != nil:
	case n.sameInstance() && n.Journal.Identity.NoDocument:
		d.Pending = given
	default:
		if err = n.checkKeptForLife(given); err == nil {
			d.Config = given
			return d
		}
	}
	if errors.Is(err, cloudinit.ErrNoDocument) {
		d.Missing, err = err, nil
	}
	if n.Journal == nil {
		d.Err = err
		return d
	}
	config, keptErr := n.LastDocument()
	d.Config, d.Err = config, errors.Join(err, keptErr)
	return d
}

// LastDocument is the one that was kept: it was in force last.
func (n *Node) LastDocument() (*cloudinit.Config, error) {
	raw, err := limit.ReadFile(n.Platform.Path(DocumentFile), limit.File)
	if err != nil {
		return nil, err
	}
	return cloudinit.ParseKept(raw, DocumentFile)
}

// KeepDocument writes the document in force where the next boot finds it, also
// when the seed is detached, and what its secret was stretched to.
func (n *Node) KeepDocument() error {
	err := files.WriteFile(n.Platform.Path(DocumentFile), cloudinit.UserData(n.Config()), files.Private())
	return errors.Join(err, n.KeepRoot())
}

// sameInstance says that this is the instance that became, or that began to.
func (n *Node) sameInstance() bool {
	if n.Journal == nil {
		return false
	}
	how, _ := n.Journal.Instance.compare(n.Instance)
	return how == same
}

// checkKeptForLife refuses a document that changes what an instance keeps for as
// long as it lives, from when it began to become. To carry out a part would cut it
// off from its mesh: Consul goes on with the gossip key and the token that it has.
func (n *Node) checkKeptForLife(next *cloudinit.Config) error {
	if !n.sameInstance() {
		return nil // what it is now, and with which document, is decided first
	}
	last, err := n.LastDocument()
	if err != nil {
		return nil // a good document is better than none
	}
	var changed []string
	if next.Secret != last.Secret {
		changed = append(changed, "`secret`")
	}
	if next.Consul.Encrypt != last.Consul.Encrypt {
		changed = append(changed, "`consul.encrypt`")
	}
	if next.Network != last.Network {
		changed = append(changed, "`network`")
	}
	if len(changed) == 0 {
		return nil
	}
	return fmt.Errorf("it changes %s, which a node keeps for life (its address is %s): put that back, or boot another node with it and let this one leave",
		strings.Join(changed, " and "), n.Address())
}
