package converge

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Each restart of a daemon costs its clients their connections.
func TestADaemonIsNotRestartedAgainAndAgain(t *testing.T) {
	n, init := nodetest.Bare(t), &nodetest.Manager{}
	p := n.Platform
	p.Init = init
	read := func() engine.Resource {
		return restartedSince(n, "xivo-dird", "sources", []string{"a source"}, func(m *Marks) *string { return &m.Directories })
	}
	// The state cannot be written, as on a full disk.
	if err := os.MkdirAll(p.Path(filepath.Dir(platform.StateDir)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path(platform.StateDir), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := engine.Ensure(t.Context(), read()); err == nil {
			t.Error("it is not told that the state cannot be written")
		}
	}
	if len(init.Restarted) > 0 {
		t.Errorf("restarted: %v", init.Restarted)
	}
	if err := errors.Join(os.Remove(p.Path(platform.StateDir)), os.Mkdir(p.Path(platform.StateDir), 0o700)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := engine.Ensure(t.Context(), read()); err != nil {
			t.Error(err)
		}
	}
	if want := []string{"xivo-dird"}; !slices.Equal(init.Restarted, want) {
		t.Errorf("restarted: %v, want %v", init.Restarted, want)
	}
}
