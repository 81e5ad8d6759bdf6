package converge

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// Marks are what converge remembers on the disk between passes and boots. Without
// the fingerprints, daemons are restarted once more; without LeavingWAN, a Consul
// that was stopped to leave is not started again.
type Marks struct {
	// Directories is the fingerprint of the sources that xivo-dird last read.
	Directories string `json:"directories"`
	// Credentials is that of the members whose credentials xivo-ctid-ng last read.
	Credentials string `json:"credentials,omitempty"`
	// CtidRestarted is the address for which xivo-ctid was restarted: once.
	CtidRestarted string `json:"ctid_restarted,omitempty"`
	// LeavingWAN: Consul was told to leave the WAN, which ends it, and was not
	// started again yet.
	LeavingWAN bool `json:"leaving_wan,omitempty"`
	// LeftWAN is why this node left the WAN: once for each reason.
	LeftWAN string `json:"left_wan,omitempty"`
	// Presences holds, per member, the xivo-ctid registration that was
	// announced to the local xivo-ctid.
	Presences map[string]string `json:"presences"`
}

// readMarks begins anew where the file cannot be read.
func readMarks(n *node.Node) Marks {
	m := Marks{Presences: map[string]string{}}
	if err := n.ReadState(node.MarksFile, &m); err != nil {
		n.Log.Warn("beginning anew without it", "error", err)
		m = Marks{Presences: map[string]string{}}
	}
	return m
}

// mark changes them on the disk.
func mark(n *node.Node, change func(*Marks)) error {
	m := readMarks(n)
	change(&m)
	return n.WriteState(node.MarksFile, m)
}

// fingerprint tells two values of our own plain types apart.
func fingerprint(v any) string {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own plain structs
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:8])
}
