package converge

import (
	"slices"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
)

func TestTheDocumentIsKeptWithWhatItsSecretWasStretchedTo(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	kept := documentKept(&Pass{Node: n, View: &View{Document: n.Config()}})
	differs := func(want ...string) {
		t.Helper()
		if got, err := kept.Diff(t.Context()); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
	differs(node.DocumentFile+" is not the document in force", node.RootFile+" is not of the document's secret")
	if err := kept.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	differs()
	nodetest.Put(t, n, node.RootFile, "{}")
	differs(node.RootFile + " is not of the document's secret")
}
