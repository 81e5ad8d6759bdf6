package converge_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// settled is a node of which no server answers. Its last pass left it alone.
func settled(t *testing.T, version string) *node.Node {
	t.Helper()
	n := nodetest.Server(t, version, nil)
	down := errors.New("this server is down")
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return nil, down }
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, down }
	nodetest.Done(t, n, node.Become, node.Settle)
	status := converge.Status{State: converge.Alone, At: time.Now().UTC(), Boot: n.Platform.BootID()}
	if err := n.WriteState(node.StatusFile, status); err != nil {
		t.Fatal(err)
	}
	return n
}

// examined are the findings on a node, by what was looked at. Two of them are named
// members: who answered last, and who is kept on the disk.
func examined(t *testing.T, n *node.Node, kept ...engine.Step[*node.Node]) map[string][]converge.Finding {
	t.Helper()
	found := map[string][]converge.Finding{}
	converge.Examine(t.Context(), n, kept, func(f converge.Finding) { found[f.Check] = append(found[f.Check], f) })
	return found
}

// looked is the finding on a step, or on the canary.
func looked(t *testing.T, found map[string][]converge.Finding, check string) converge.Finding {
	t.Helper()
	all := found[check]
	if len(all) == 0 {
		t.Fatalf("%s was not looked at; %v were", check, slices.Sorted(maps.Keys(found)))
	}
	return all[len(all)-1]
}

// That no message goes to anybody is not fine, where there is nobody: it is not
// looked at, and that is told.
func TestDoctorTellsWhatDoesNotConcernANode(t *testing.T) {
	skipped := func(t *testing.T, found map[string][]converge.Finding, check, why string) {
		t.Helper()
		if f := looked(t, found, check); f.Level != converge.Skipped || !strings.Contains(f.Says, why) {
			t.Errorf("%s: %s, %q; want it skipped: %q", check, f.Level, f.Says, why)
		}
	}
	t.Run("a version that cannot be joined to others", func(t *testing.T) {
		found := examined(t, settled(t, "18.04"))
		for _, check := range []string{"web-service", "wan", "members", "upstreams", "directories", "dird", "ctid-ng", "ctid", "presences", "canary"} {
			skipped(t, found, check, "18.04 shares contacts and statuses in another way")
		}
		if f := found["version"][0]; f.Level != converge.Warn || !strings.Contains(f.Says, "cannot be joined") {
			t.Errorf("the version: %s, %q", f.Level, f.Says)
		}
	})

	t.Run("a node that knows no other", func(t *testing.T) {
		found := examined(t, settled(t, "16.03"))
		for _, check := range []string{"presences", "canary"} {
			skipped(t, found, check, "this node knows no other")
		}
		skipped(t, found, "firewall", "the document switches it off")
		skipped(t, found, "ctid-ng", "16.03 asks its peers without credentials")
		// What concerns it, and cannot be looked at, is neither skipped nor fine.
		for _, check := range []string{"overlay", "web-service", "wan", "members", "upstreams", "directories", "dird", "ctid", "links"} {
			if f := looked(t, found, check); f.Level != converge.Fail {
				t.Errorf("%s: %s, %q; nothing tells that", check, f.Level, f.Says)
			}
		}
	})

	t.Run("the xivo-ctid of a version asks no peers", func(t *testing.T) {
		skipped(t, examined(t, settled(t, "17.17")), "presences", "the xivo-ctid of XiVO 17.17 asks no peers")
	})
}

func TestDoctorLooksAtWhatANodeKeepsForLife(t *testing.T) {
	place := func(name string, skip engine.Skip, diff ...string) engine.Step[*node.Node] {
		return engine.Step[*node.Node]{
			Name: name, Text: name + " is as it was set",
			When: func(*node.Node) engine.Skip { return skip },
			Open: func(context.Context, *node.Node) (engine.Resource, error) {
				return engine.New(func(context.Context) ([]string, error) { return diff, nil }, func(context.Context) error {
					t.Error("it was changed")
					return nil
				}), nil
			},
		}
	}
	found := examined(t, settled(t, "16.03"), place("one", ""), place("another", "", "it is other"), place("elsewhere", "there is none", "it is other"))
	for _, want := range []converge.Finding{
		{Level: converge.OK, Check: "one", Says: "one is as it was set"},
		{Level: converge.Fail, Check: "another", Says: "it is other: it was changed after this node became: put it back"},
		{Level: converge.Skipped, Check: "elsewhere", Says: "skipped: there is none"},
	} {
		if got := looked(t, found, want.Check); got != want {
			t.Errorf("found %+v, want %+v", got, want)
		}
	}
}

func TestDoctorOnANodeThatMadeNoPassYet(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	nodetest.Done(t, n, node.Become, node.Settle)
	n.Document.Config = nil // only what is looked at on any server
	var clock converge.Finding
	converge.Examine(t.Context(), n, nil, func(f converge.Finding) {
		if f.Check == "clock" {
			clock = f
		}
	})
	if clock.Level != converge.Skipped || clock.Says != "skipped: no pass has been made yet" {
		t.Errorf("got %+v", clock)
	}
}
