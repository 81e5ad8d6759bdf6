package firstboot

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// The one way to lose the KV: to export again what Consul holds after a run
// that was cut off had emptied it.
func TestAResumedRunKeepsTheOriginalExport(t *testing.T) {
	for _, stamp := range []stampState{running, done} {
		t.Run("consul-state "+string(stamp), func(t *testing.T) {
			p := &platform.Platform{Root: t.TempDir()}
			if err := os.MkdirAll(p.Path(platform.StateDir), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(p.Path(exportFile), []byte("the original"), 0o600); err != nil {
				t.Fatal(err)
			}
			n := &Node{
				Platform: p,
				Log:      slog.New(slog.DiscardHandler),
				Progress: func(Event) {},
				Config:   cloudinit.Alone(),
				Journal:  newJournal(filepath.Join(p.Path(platform.StateDir), "journal.json"), Instance{}, Identity{UUID: uuid.New()}),
			}
			if err := n.Journal.stamp(consulReset, stamp); err != nil {
				t.Fatal(err)
			}

			action, why, err := n.Begin(t.Context(), false)
			if err != nil || action != Resume {
				t.Fatalf("%s (%s), %v", action, why, err)
			}
			if err := n.exportLive(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(p.Path(exportFile)); err != nil || string(got) != "the original" {
				t.Errorf("the export is %q, %v", got, err)
			}
			if n.Journal.Done(consulReset) {
				t.Error("what Consul wrote since would stay")
			}
		})
	}
}
