package converge_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestANodeWaitsForTheWizard(t *testing.T) {
	dsn := server.Postgres(t, "")
	nothing := func(*testing.T, *node.Node, *pgx.Conn) {}
	mark := func(t *testing.T, n *node.Node, _ *pgx.Conn) {
		t.Helper()
		file := n.Platform.Path(platform.WizardMarkerFile)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(t *testing.T, _ *node.Node, db *pgx.Conn) {
		t.Helper()
		if _, err := db.Exec(t.Context(), "UPDATE general SET configured = true"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, version, schema string
		distract, pass        func(*testing.T, *node.Node, *pgx.Conn)
	}{
		{"15.20, which leaves a file", "15.20", "15.20", nothing, mark},
		{"16.05, the last that does", "16.05", "16.12", configure, mark},
		{"16.06, which marks the database, whatever file is there", "16.06", "16.12", mark, configure},
		{"18.03", "18.03", "17.17", mark, configure},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := nodetest.Connect(t, server.Database(t, dsn, schema.SQL(c.schema)))
			n := nodetest.Server(t, c.version, db)
			nodetest.Done(t, n, node.Become, node.Settle)
			c.distract(t, n, db)
			if why := converge.Waits(t.Context(), n); !strings.Contains(why, "wizard has not been passed") {
				t.Errorf("before: waits for %q", why)
			}
			if s := converge.ReadStatus(t.Context(), n); s.State != converge.Waiting {
				t.Errorf("before: %s", s.State)
			}
			c.pass(t, n, db)
			if why := converge.Waits(t.Context(), n); why != "" {
				t.Errorf("after: waits for %q", why)
			}
		})
	}

	t.Run("a database that does not tell is not taken for a yes", func(t *testing.T) {
		n := nodetest.Server(t, "16.16", nodetest.Connect(t, server.Database(t, dsn, "CREATE TABLE general (configured boolean)")))
		nodetest.Done(t, n, node.Become, node.Settle)
		if why := converge.Waits(t.Context(), n); !strings.Contains(why, "general.configured") {
			t.Errorf("waits for %q", why)
		}
		if err := n.WriteState(node.StatusFile, converge.Status{State: converge.Joined, Boot: n.Platform.BootID()}); err != nil {
			t.Fatal(err)
		}
		if why := converge.Waits(t.Context(), n); why != "" {
			t.Errorf("a node that once converged waits for %q", why)
		}
	})
}
