package node

import (
	"errors"
	"io/fs"
	"os"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Names of the seal's operations whose proofs decide what a first boot does.
const (
	SealedUUID       = "uuid-database"
	SealedFederation = "rabbitmq-federation"
	SealedBrokerName = "rabbitmq-name"
)

// Seal is what the manifest in an image says.
type Seal struct {
	// Manifest is nil where no seal was; Err is why it cannot be read.
	Manifest *manifest.Manifest
	Err      error
}

// Sealed says whether this machine is an image from which the XiVO UUID was taken
// out. A manifest that cannot be read counts: whoever acts on it is told.
func (s Seal) Sealed() bool {
	return s.Err != nil || s.Manifest != nil && s.Manifest.Proved(SealedUUID)
}

// BrokerSealed says whether the broker was left with no name and no upstream, and
// did not work since.
func (n *Node) BrokerSealed() bool {
	m := n.Seal.Manifest
	return m != nil && !n.WorkedSinceSeal() && m.Proved(SealedFederation) && m.Proved(SealedBrokerName)
}

// WorkedSinceSeal says whether this sealed machine was a node meanwhile, as one is
// on which somebody ran `cloud-init clean`: its export was used, and Consul has a
// state again.
func (n *Node) WorkedSinceSeal() bool {
	_, noExport := os.Stat(n.Platform.Path(kvexport.File))
	_, noState := os.Stat(n.Platform.Path(platform.ConsulDataDir, "raft"))
	return errors.Is(noExport, fs.ErrNotExist) && noState == nil
}

// Sum is the SHA-256 of a file of this machine, in hex.
func (n *Node) Sum(path string) (string, error) {
	content, err := limit.ReadFile(n.Platform.Path(path), limit.KV)
	return manifest.Sum(content), err
}
