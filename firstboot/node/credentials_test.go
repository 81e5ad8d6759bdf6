package node_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const ours, another = "seven small boats left harbour today", "nine grey herons watched the tide"

// theirs is a root that only its own file can tell: no secret leads to it.
func theirs(t *testing.T) (kept string, keyID string) {
	t.Helper()
	g := secret.Stretch("what another process stretched before")
	return string(g.Keep(ours)), g.KeyID()
}

func TestTheSecretIsStretchedOncePerNode(t *testing.T) {
	n := machine(t)
	n.Document.Config = &cloudinit.Config{Version: 1, Secret: ours}
	if err := n.MakeStateDir(); err != nil {
		t.Fatal(err)
	}
	if got, want := n.Credentials().KeyID(), secret.Stretch(ours).KeyID(); got != want {
		t.Errorf("nothing is kept yet: %s, want %s", got, want)
	}
	if files := nodetest.Files(t, n.Platform.Path(platform.StateDir)); len(files) != 0 {
		t.Errorf("asking wrote %v", files)
	}

	if err := n.KeepDocument(); err != nil {
		t.Fatal(err)
	}
	if !n.RootKept() {
		t.Error("it is not kept")
	}
	for name, mode := range map[string]os.FileMode{node.RootFile: 0o600, node.MeshDir: 0o700 | os.ModeDir} {
		if st, err := os.Stat(n.Platform.Path(name)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v; want %v", name, st.Mode(), err, mode)
		}
	}

	kept, keyID := theirs(t)
	nodetest.Put(t, n, node.RootFile, kept)
	next := reopen(t, n)
	next.Document.Config = n.Document.Config
	if got := next.Credentials().KeyID(); got != keyID {
		t.Errorf("the next process does not take what is kept: %s, want %s", got, keyID)
	}
	nodetest.Put(t, n, node.RootFile, "")
	if got := next.Credentials().KeyID(); got != keyID {
		t.Errorf("it is read again and again: %s", got)
	}
}

func TestARootThatIsNotOfTheSecretIsNotTaken(t *testing.T) {
	kept, _ := theirs(t)
	for name, content := range map[string]string{"cut off": kept[:40], "empty": "", "of another secret": string(secret.Stretch(another).Keep(another))} {
		t.Run(name, func(t *testing.T) {
			n := machine(t)
			n.Document.Config = &cloudinit.Config{Version: 1, Secret: ours}
			nodetest.Put(t, n, node.RootFile, content)
			if got, want := n.Credentials().KeyID(), secret.Stretch(ours).KeyID(); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			if n.RootKept() {
				t.Error("it counts as kept")
			}
			if err := n.KeepDocument(); err != nil || !n.RootKept() {
				t.Errorf("it is not written anew: %v", err)
			}
		})
	}
	n := machine(t)
	n.Document.Config = &cloudinit.Config{Version: 1, Secret: ours}
	before := n.Credentials().KeyID()
	n.Document.Config.Secret = another
	if n.Credentials().KeyID() == before {
		t.Error("a document with another secret has the credentials of the one before")
	}
}

// What a copy knew of its mesh goes, and what opens it.
func TestACopyForgetsTheRoot(t *testing.T) {
	n := machine(t)
	nodetest.Put(t, n, node.RootFile, "{}")
	if err := n.ForgetMesh(); err != nil {
		t.Fatal(err)
	}
	for name := range nodetest.Files(t, n.Platform.Path(platform.StateDir)) {
		if strings.Contains(name, "mesh") {
			t.Errorf("%s is still there", name)
		}
	}
}

// What a later release refuses takes no node out of its mesh.
func TestANodeGoesOnWithASecretThatWasAcceptedBefore(t *testing.T) {
	n := machine(t)
	n.Document.Config = &cloudinit.Config{Version: 1, Secret: "correct horse battery staple", Identity: cloudinit.IdentityAuto, Topology: cloudinit.TopologyMesh}
	if err := errors.Join(n.MakeStateDir(), n.KeepDocument()); err != nil {
		t.Fatal(err)
	}
	if c, err := n.LastDocument(); err != nil || c.Secret != n.Config().Secret {
		t.Errorf("%v, %v", c, err)
	}
}
