package node_test

import (
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

func TestNowIsNotBeforeWhatThisMachineWasGivenOrWrote(t *testing.T) {
	reset := time.Unix(0, 0).UTC()
	sealed, became, wrote, clock := reset.Add(time.Hour), reset.Add(2*time.Hour), reset.Add(3*time.Hour), reset.Add(4*time.Hour)
	n := machine(t)
	for _, c := range []struct {
		name  string
		then  func()
		clock time.Time
		wrote time.Time
		want  time.Time
	}{
		{"nothing but a clock", func() {}, reset, time.Time{}, reset},
		{"the seal", func() { n.Seal.Manifest = &manifest.Manifest{At: sealed} }, reset, time.Time{}, sealed},
		{"the journal", func() {
			n.Journal = n.NewJournal(node.Identity{})
			n.Journal.Steps[node.Become] = engine.Stamp{State: engine.Done, At: became}
		}, reset, time.Time{}, became},
		{"the status", func() {}, reset, wrote, wrote},
		{"the clock is right", func() {}, clock, wrote, clock},
	} {
		c.then()
		if got := n.Trusted(c.clock, c.wrote); !got.Equal(c.want) {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
