package become_test

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// What the daemons of each release read of their own node, where they read it,
// after the steps that write it have run. The columns are those of
// docs/xivo/directory.md, The schema by era;
// what they read of the other nodes is tested where the node converges.
func TestEveryVersionIsWrittenAsItsDaemonsRead(t *testing.T) {
	dsn := server.Postgres(t, "")
	for _, v := range []struct {
		version     string
		schema      string // the release whose tables these are
		environment bool   // daemons take the UUID from it
		checkURL    bool
		listens     bool // xivo-ctid, for its peers
		ng          bool // xivo-ctid-ng registers itself for its peers
	}{
		{"15.19", "15.20", false, true, true, false},
		{"15.20", "15.20", false, true, true, false},
		{"16.01", "16.03", false, false, true, false},
		{"16.03", "16.03", true, false, true, false},
		{"16.12", "16.12", true, false, true, false},
		{"16.13", "16.13", true, false, true, false},
		{"16.16", "16.16", true, false, true, true},
		{"17.17", "17.17", true, false, false, true},
		{"18.03", "17.17", true, false, false, true},
	} {
		t.Run(v.version, func(t *testing.T) {
			db := nodetest.Connect(t, server.Database(t, dsn, schema.SQL(v.schema)))
			n := nodetest.Server(t, v.version, db)
			if err := n.CheckSchema(t.Context()); err != nil {
				t.Fatal(err)
			}
			p := nodetest.Only(t, become.Phase, "uuid-database", "uuid-files", "uuid-manager", "ctid-config")
			for i, s := range p.Steps {
				skipped := !v.environment && (s.Name == "uuid-files" || s.Name == "uuid-manager")
				if e := n.Runner().Step(t.Context(), p, i); e.Err != nil {
					t.Fatal(e.Err)
				} else if (e.Skipped != "") != skipped {
					t.Errorf("%s is skipped: %q", s.Name, e.Skipped)
				}
				if again := n.Runner().Step(t.Context(), p, i); again.Changes != nil || again.Err != nil {
					t.Errorf("%s, a second time: %v, %v", s.Name, again.Changes, again.Err)
				}
			}

			id := n.Identity().UUID.String()
			if got := nodetest.Ask[string](t, db, "SELECT uuid FROM infos"); got != id {
				t.Errorf("the database has the UUID %s", got)
			}
			outside := nodetest.OldUUID // who does not read it is left alone
			if v.environment {
				outside = id
			}
			for place, got := range map[string]string{
				nodetest.ProfileFile: nodetest.Read(t, n, nodetest.ProfileFile), nodetest.ManagerFile: nodetest.Read(t, n, nodetest.ManagerFile),
				"/etc/default/xivo": nodetest.Read(t, n, "/etc/default/xivo"), "the service manager": n.Platform.Init.(*nodetest.Manager).Env["XIVO_UUID"],
			} {
				if !strings.Contains(got, outside) || strings.Count(got, "-4333-") != 1 {
					t.Errorf("%s has %q, want %s", place, got, outside)
				}
			}

			discovery := map[string]any{"advertise_address": "10.0.0.2"}
			wantCtid := map[string]any{"service_discovery": discovery}
			if v.checkURL {
				wantCtid["service_discovery"] = map[string]any{"advertise_address": "10.0.0.2", "check_url": "http://10.0.0.2:9495/0.1/infos"}
			}
			if v.listens {
				wantCtid["rest_api"] = map[string]any{"http": map[string]any{"listen": "0.0.0.0"}}
			}
			var wantNG map[string]any
			if v.ng {
				wantNG = map[string]any{"service_discovery": discovery}
			}
			for file, want := range map[string]map[string]any{"/etc/xivo-ctid": wantCtid, "/etc/xivo-ctid-ng": wantNG} {
				var got map[string]any
				raw, err := os.ReadFile(n.Platform.Path(file, "conf.d/interconnection.yml"))
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Fatal(err)
				}
				if err := yaml.Unmarshal(raw, &got); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", file, diff)
				}
			}
		})
	}
}
