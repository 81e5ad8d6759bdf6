package node

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// credentials are those of the secret that they were asked for last.
type credentials struct {
	sync.Mutex
	of         secret.Secret
	generation secret.Generation
	known      bool
}

// Credentials derives what the mesh shares from the document's secret. A node that
// keeps the root of it (see RootKept) has them at once; another one stretches the
// secret first, once in a process.
func (n *Node) Credentials() secret.Generation {
	n.credentials.Lock()
	defer n.credentials.Unlock()
	s := n.Config().Secret
	if !n.credentials.known || n.credentials.of != s {
		n.credentials.generation = n.generation(s)
		n.credentials.of, n.credentials.known = s, true
	}
	return n.credentials.generation
}

// generation takes what is kept, or stretches: of one secret both are the same, so
// what cannot be read costs time and nothing else.
func (n *Node) generation(s secret.Secret) secret.Generation {
	g, err := n.restoreRoot(s)
	if err == nil {
		return g
	}
	if !errors.Is(err, fs.ErrNotExist) {
		n.Log.Debug("the secret is stretched again", "file", RootFile, "error", err)
	}
	return secret.Stretch(s)
}

func (n *Node) restoreRoot(s secret.Secret) (secret.Generation, error) {
	raw, err := files.ReadFile(n.Platform.Path(RootFile))
	if err != nil {
		return secret.Generation{}, err
	}
	return secret.Restore(raw, s)
}

// RootKept says whether RootFile is that of the document's secret.
func (n *Node) RootKept() bool {
	_, err := n.restoreRoot(n.Config().Secret)
	return err == nil
}

// KeepRoot writes RootFile, for root alone.
func (n *Node) KeepRoot() error {
	if err := os.MkdirAll(n.Platform.Path(MeshDir), 0o700); err != nil {
		return err
	}
	return files.WriteFile(n.Platform.Path(RootFile), n.Credentials().Keep(n.Config().Secret), files.Private())
}
