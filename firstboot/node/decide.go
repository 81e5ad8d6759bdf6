package node

import (
	"errors"
	"fmt"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Instance is what cloud-init and the hardware say this machine is.
type Instance struct {
	// ID is cloud-init's instance id; "" when cloud-init does not name a real
	// one (none, or one that a detached seed leaves).
	ID string `json:"id"`
	// Product is the DMI product UUID; "" when unknown.
	Product string `json:"product"`
}

// likeness is what a comparison of two instances tells.
type likeness int

const (
	same likeness = iota
	doubtful
	clone
)

// compare: a clone is certain when a real instance id changed and the product
// UUID changed or is unknown. One signal alone is a doubt.
func (was Instance) compare(now Instance) (likeness, string) {
	idChanged := was.ID != "" && now.ID != "" && was.ID != now.ID
	productKnown := was.Product != "" && now.Product != ""
	productChanged := productKnown && !platform.SameProduct(was.Product, now.Product)
	switch {
	case idChanged && (productChanged || !productKnown):
		return clone, fmt.Sprintf("the instance id is %s, it was %s", now.ID, was.ID)
	case idChanged:
		return doubtful, fmt.Sprintf("the instance id changed from %s to %s, but the hardware is the same", was.ID, now.ID)
	case productChanged:
		return doubtful, fmt.Sprintf("the hardware's product UUID changed from %s to %s, but not the instance id", was.Product, now.Product)
	}
	return same, "the same instance"
}

// Action is what becomes of a node's identity.
type Action string

const (
	// TakeOn takes on a new identity.
	TakeOn Action = "become"
	// Adopt keeps the identity that the server has, and makes it a node.
	Adopt Action = "adopt"
	// Resume ends a become that was cut off.
	Resume Action = "resume"
	// Unchanged changes nothing: this instance has become already.
	Unchanged Action = "unchanged"
	// InDoubt changes nothing, and keeps out of the mesh until a person decides.
	InDoubt Action = "hold"
	// LeaveAlone changes nothing: a XiVO that nobody asked to change.
	LeaveAlone Action = "leave alone"
)

// Found is everything that the decision rests on.
type Found struct {
	Sealed   bool
	Journal  *Journal
	Instance Instance
	Document *cloudinit.Config
	// Pending: there is a document, and the node became without one.
	Pending bool
	// Taken: another member has this node's address, and it never was a member.
	Taken bool
	// Confirmed: a person says that this machine is a copy.
	Confirmed bool
}

// Decide says what becomes of this node's identity, and why.
func (n *Node) Decide(confirmed bool) (Action, string) {
	taken, err := n.Taken()
	// Who is a member by now keeps its address.
	var members []mesh.Member
	if err = errors.Join(err, n.ReadState(MembersFile, &members)); err != nil {
		n.Log.Warn("whether another member has this node's address is not known", "error", err)
	}
	return Decide(Found{
		Taken:    err == nil && len(taken) > 0 && len(members) == 0,
		Sealed:   n.Seal.Sealed(),
		Journal:  n.Journal,
		Instance: n.Instance,
		Document: n.Config(),
		// Another process may have taken it since it was read.
		Pending:   n.Document.Pending != nil && n.Identity().NoDocument,
		Confirmed: confirmed,
	})
}

// Decide says what becomes of the identity, and why. It is taken before
// anything is changed. Doubt never changes an identity.
func Decide(f Found) (Action, string) {
	if f.Journal != nil {
		how, why := f.Journal.Instance.compare(f.Instance)
		switch {
		case how == clone:
			return TakeOn, "a clone: " + why
		case how == doubtful && f.Confirmed:
			return TakeOn, "confirmed by a person: " + why
		case how == doubtful:
			return InDoubt, why + ": if this is a copy, run `xivo-firstboot run --confirm`; if it is the same machine, `xivo-firstboot become --same`"
		case !f.Journal.Became():
			return Resume, "a become of this instance was cut off"
		case f.Pending && f.Journal.Settled():
			return Adopt, "this node became without a document, and has one now"
		case f.Taken && f.Journal.Settled():
			return Adopt, "another member of the mesh has this node's address, which draws another and keeps all else"
		}
		return Unchanged, why
	}
	switch {
	case f.Sealed:
		return TakeOn, "a sealed image boots for the first time"
	case f.Document == nil:
		return LeaveAlone, "not sealed, and no document: left as it is"
	case f.Document.Identity == cloudinit.IdentityKeep:
		return Adopt, "identity: keep"
	case f.Document.Identity == cloudinit.IdentityRegenerate:
		return TakeOn, "identity: regenerate"
	}
	return LeaveAlone, "not sealed, and the document does not say `identity: keep` or `identity: regenerate`: left as it is"
}

// Settled says whether this instance became and settled.
func (n *Node) Settled() bool {
	return n.Journal != nil && n.Journal.Became() && n.Journal.Settled()
}

// Moved says that this machine is the one that became, whatever cloud-init or the
// hardware call it now: a VM that was moved. Its identity stays.
func (n *Node) Moved() error {
	if n.Instance.ID != "" {
		n.Journal.Instance.ID = n.Instance.ID
	}
	if n.Instance.Product != "" {
		n.Journal.Instance.Product = n.Instance.Product
	}
	return n.Journal.Save()
}
