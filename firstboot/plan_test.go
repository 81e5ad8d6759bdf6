package firstboot_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// A step that does not concern a server is told as that, with the reason, and is
// not taken for one that found all as wanted.
func TestAPlanSaysWhatIsSkippedAndWhy(t *testing.T) {
	dsn := server.Postgres(t, "")
	const (
		noSSH   = "there is no /etc/ssh"
		adopted = "this server was adopted, and keeps its own"
		daemons = "the daemons of XiVO 15.20 take it from the database"
	)
	for _, c := range []struct {
		name, version, schema, identity string
		ssh                             bool
		want                            map[string]engine.Skip
	}{
		{"a copy whose daemons read the database", "15.20", "15.20", cloudinit.IdentityRegenerate, false,
			map[string]engine.Skip{"become.ssh-host-keys": noSSH, "become.uuid-files": daemons, "become.uuid-manager": daemons}},
		{"a copy whose daemons have it in their environment", "16.03", "16.03", cloudinit.IdentityRegenerate, true,
			map[string]engine.Skip{}},
		{"a server that is adopted", "16.03", "16.03", cloudinit.IdentityKeep, false,
			map[string]engine.Skip{"become.ssh-host-keys": noSSH, "become.old-keys": adopted, "become.service-keys": adopted}},
	} {
		t.Run(c.name, func(t *testing.T) {
			programs(t, map[string]string{"consul": "#!/bin/sh\n"})
			n := nodetest.Server(t, c.version, nodetest.Connect(t, server.Database(t, dsn, schema.SQL(c.schema))))
			whole(t, n)
			if c.ssh {
				nodetest.Put(t, n, "/etc/ssh/sshd_config", "")
			}
			n.Journal, n.Config().Identity = nil, c.identity
			before := nodetest.Files(t, n.Platform.Root)
			planned, err := firstboot.Plan(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if planned.Phase != node.Become || !planned.Once {
				t.Errorf("planned: %s, once: %t", planned.Phase, planned.Once)
			}
			if len(planned.Report) != len(firstboot.Phases()[0].Steps) {
				t.Errorf("%d steps are planned of %d", len(planned.Report), len(firstboot.Phases()[0].Steps))
			}
			skipped := map[string]engine.Skip{}
			for _, e := range planned.Report {
				if e.Skipped != "" {
					skipped[e.ID()] = e.Skipped
				}
				if e.Skipped != "" && (len(e.Changes) > 0 || e.Follows != "") {
					t.Errorf("%s is skipped, and does something: %+v", e.ID(), e)
				}
			}
			if diff := cmp.Diff(c.want, skipped); diff != "" {
				t.Errorf("skipped (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, nodetest.Files(t, n.Platform.Root)); diff != "" {
				t.Errorf("a plan wrote:\n%s", diff)
			}
		})
	}
}

// The run decides on another UUID, and on the name that is made of it.
func TestAPlanTellsNoIdentityThatTheRunDecidesAnew(t *testing.T) {
	dsn := server.Postgres(t, "")
	for what, known := range map[string]bool{cloudinit.IdentityRegenerate: false, cloudinit.IdentityKeep: true} {
		t.Run(what, func(t *testing.T) {
			programs(t, map[string]string{"consul": "#!/bin/sh\n"})
			n := nodetest.Server(t, "16.03", nodetest.Connect(t, server.Database(t, dsn, schema.SQL("16.03"))))
			whole(t, n)
			n.Journal, n.Config().Identity = nil, what
			planned, err := firstboot.Plan(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, e := range planned.Report.Changed() {
				lines = append(lines, e.Changes...)
			}
			text := strings.Join(lines, "\n")
			if got := strings.Contains(text, n.Identity().UUID.String()); got != known {
				t.Errorf("the UUID is told: %t\n%s", got, text)
			}
			if got := strings.Contains(text, "a new UUID"); got == known {
				t.Errorf("a new UUID is told: %t\n%s", got, text)
			}
			// Which the certificate's keys and what belongs to them follow.
			follows := slices.ContainsFunc(planned.Report, func(e engine.Event) bool { return e.Follows == "become.old-keys" })
			if follows == known {
				t.Errorf("what is made anew follows from what is removed: %t", follows)
			}
		})
	}
}

func TestAPlanOfWhatNobodyAskedForSaysWhy(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*testing.T, *node.Node)
		why    string
	}{
		{"left alone", func(*testing.T, *node.Node) {}, "left as it is"},
		{"in doubt", func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{}, node.Become, node.Settle)
			n.Journal.Instance, n.Instance = node.Instance{ID: "i-1", Product: theProduct}, node.Instance{ID: "i-2", Product: theProduct}
		}, "the instance id changed"},
		{"a node that waits", func(t *testing.T, n *node.Node) {
			hasBegun(t, n, node.Identity{}, node.Become, node.Settle)
		}, "wizard has not been passed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := booting(t, nil)
			c.change(t, n)
			planned, err := firstboot.Plan(t.Context(), n)
			if err != nil || planned.Phase != "" || len(planned.Report) > 0 || !strings.Contains(planned.Why, c.why) {
				t.Errorf("%+v, %v; want no phase, since %s", planned, err, c.why)
			}
		})
	}
}
