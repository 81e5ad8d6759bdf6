package firstboot_test

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// ownNetwork is one that this machine is in.
func ownNetwork(t *testing.T) netip.Prefix {
	t.Helper()
	local, err := node.LocalAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for a := range local {
		if a.IsGlobalUnicast() {
			return netip.PrefixFrom(a, 24).Masked()
		}
	}
	t.Skip("this machine has no address")
	return netip.Prefix{}
}

// A first boot that cannot begin well does not begin.
func TestNothingIsHalfDone(t *testing.T) {
	dsn := server.Postgres(t, schema.SQL("16.03"))
	free := netip.MustParsePrefix("10.0.0.0/29")
	for _, c := range []struct {
		name, identity, infos string
		network               netip.Prefix
		says                  string
	}{
		{"a range that this machine uses", cloudinit.IdentityRegenerate, "", ownNetwork(t), "is in use here"},
		{"no UUID to keep", cloudinit.IdentityKeep, "DELETE FROM infos", free, "table infos has 0 rows"},
		{"two UUIDs to keep", cloudinit.IdentityKeep, "INSERT INTO infos VALUES ('" + nodetest.OldUUID + "'), ('" + nodetest.PeerUUID + "')", free, "table infos has 2 rows"},
		{"two UUIDs to replace", cloudinit.IdentityRegenerate, "DELETE FROM infos; INSERT INTO infos VALUES ('" + nodetest.OldUUID + "'), ('" + nodetest.PeerUUID + "')", free, "table infos has 2 rows"},
		{"a UUID that is none", cloudinit.IdentityKeep, "DELETE FROM infos; INSERT INTO infos VALUES ('xivo')", free, "infos.uuid is no UUID"},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := nodetest.Connect(t, dsn)
			n := nodetest.Server(t, "16.03", db)
			n.Journal, n.Config().Identity, n.Config().Network.Range = nil, c.identity, c.network
			for sql := range strings.SplitSeq(c.infos, ";") {
				if _, err := db.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			before := nodetest.Files(t, n.Platform.Root)
			_, _, err := firstboot.Begin(t.Context(), n, false)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v, want %q", err, c.says)
			}
			if diff := cmp.Diff(before, nodetest.Files(t, n.Platform.Root)); diff != "" {
				t.Errorf("written:\n%s", diff)
			}
		})
	}
}

func TestAVersionFileThatDisagreesWithTheDatabaseIsRefused(t *testing.T) {
	dsn := server.Postgres(t, "")
	databases := map[string]*pgx.Conn{}
	for _, era := range schema.Eras {
		databases[era] = nodetest.Connect(t, server.Database(t, dsn, schema.SQL(era)))
	}
	for _, c := range []struct {
		version string
		of      string   // the schemas that it may have
		names   []string // of one that it may not have, in the error
		other   string   // that one
	}{
		{"15.19", "15.20", []string{"has accesswebservice.acl", "lacks accesswebservice.obj"}, "16.03"},
		{"15.20", "15.20", []string{"has ctidirectories.directory_id", "has infos.wazo_version"}, "17.17"},
		{"16.01", "16.03 16.12", []string{"has accesswebservice.obj", "lacks accesswebservice.acl"}, "15.20"},
		{"16.03", "16.03 16.12", []string{"has ctidirectories.directory_id", "lacks ctidirectories.uri"}, "16.13"},
		{"16.12", "16.03 16.12", []string{"has ctidirectories.directory_id", "lacks ctidirectories.uri"}, "16.16"},
		{"16.13", "16.13 16.16", []string{"has ctidirectories.uri", "lacks ctidirectories.directory_id"}, "16.12"},
		{"16.16", "16.13 16.16", []string{"has infos.wazo_version"}, "17.17"},
		{"17.17", "17.17", []string{"lacks infos.wazo_version"}, "16.16"},
		{"18.04", "15.20 16.03 16.12 16.13 16.16 17.17", nil, ""}, // nobody knows
	} {
		for _, era := range schema.Eras {
			name := c.version + " on the database of " + era
			fits := strings.Contains(c.of, era)
			t.Run(name, func(t *testing.T) {
				n := nodetest.Server(t, c.version, databases[era])
				if err := n.CheckSchema(t.Context()); (err == nil) != fits {
					t.Errorf("fits: %t, but the check says %v", fits, err)
				}
			})
		}
		if c.other == "" {
			continue
		}
		for verb, do := range map[string]func(context.Context, *node.Node) error{
			"become": func(ctx context.Context, n *node.Node) error {
				n.Config().Identity, n.Journal = cloudinit.IdentityRegenerate, nil
				_, _, err := firstboot.Begin(ctx, n, false)
				return err
			},
			"seal": func(ctx context.Context, n *node.Node) error {
				_, err := sealing.Seal(ctx, n, sealing.Options{AllowConfigured: true})
				return err
			},
		} {
			t.Run(verb+" of "+c.version+" on the database of "+c.other+" writes nothing", func(t *testing.T) {
				n := nodetest.Server(t, c.version, databases[c.other])
				before := nodetest.Files(t, n.Platform.Root)
				err := do(t.Context(), n)
				if err == nil {
					t.Fatal("it went ahead")
				}
				for _, part := range append(c.names, platform.VersionFile, "XiVO "+c.version) {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("the error does not name %q: %v", part, err)
					}
				}
				if diff := cmp.Diff(before, nodetest.Files(t, n.Platform.Root)); diff != "" {
					t.Errorf("written:\n%s", diff)
				}
			})
		}
	}
}

// That converge shares nothing is tested there.
func TestALaterVersionBecomesAndSharesNothing(t *testing.T) {
	// As late ones have it: no account, no directory is in this database.
	db := nodetest.Connect(t, server.Postgres(t, schema.SQL("17.17")+`DROP TABLE accesswebservice, ctidirectoryfields, ctidirectories, directories, cticontexts CASCADE;`))
	n := nodetest.Server(t, "18.04", db)
	if err := n.CheckSchema(t.Context()); err != nil {
		t.Error(err)
	}
	run := func(p engine.Phase[*node.Node], name string) engine.Event {
		t.Helper()
		return n.Runner().Step(t.Context(), nodetest.Only(t, p, name), 0)
	}
	for _, name := range []string{"old-keys", "service-keys"} {
		if e := run(become.Phase, name); e.Err != nil || e.Skipped != "" {
			t.Errorf("%s: %v, skipped: %q", name, e.Err, e.Skipped)
		}
	}
	seal := engine.Phase[*node.Node]{Name: "seal"}
	for _, op := range sealing.Operations() {
		if op.Name == "directory-rows" {
			seal.Steps = append(seal.Steps, op.Step)
		}
	}
	if e := run(seal, "directory-rows"); e.Err != nil || len(e.Changes) > 0 || !strings.Contains(string(e.Skipped), "18.04") {
		t.Errorf("seal: %v, %v, skipped: %q; want it skipped, with the version as the reason", e.Changes, e.Err, e.Skipped)
	}
	for _, name := range []string{"uuid-database", "uuid-files", "uuid-manager", "ctid-config"} {
		if e := run(become.Phase, name); e.Err != nil || e.Changes == nil {
			t.Errorf("%s: %v, %v", name, e.Changes, e.Err)
		}
	}
}

func TestAnAdoptedServerKeepsTheUUIDOfItsDaemons(t *testing.T) {
	dsn := server.Postgres(t, "")
	for _, c := range []struct {
		name, version, schema string
		change                func(*node.Node)
		environment           bool
	}{
		{"16.01: the database's, nothing else counts", "16.01", "16.03", func(*node.Node) {}, false},
		{"16.03: the database's, from which the others are made", "16.03", "16.03", func(*node.Node) {}, false},
		{"17.03: the service manager's", "17.03", "17.17", func(*node.Node) {}, true},
		{"17.03, not in the service manager: the file's", "17.03", "17.17", func(n *node.Node) { n.Platform.Init = &nodetest.Manager{} }, true},
		{"17.03, in neither: the database's", "17.03", "17.17", func(n *node.Node) {
			n.Platform.Init = &nodetest.Manager{}
			os.Remove(n.Platform.Path(nodetest.ProfileFile))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := nodetest.Connect(t, server.Database(t, dsn, schema.SQL(c.schema)))
			n := nodetest.Server(t, c.version, db)
			c.change(n)
			want := nodetest.OldUUID
			if !c.environment {
				want = nodetest.Ask[string](t, db, "SELECT uuid FROM infos")
			}
			if got, err := identity.UUID(t.Context(), db, n.Platform); err != nil || got.String() != want {
				t.Errorf("%s, %v; want %s", got, err, want)
			}
			if id, err := become.Identity(t.Context(), n, true); err != nil || id.UUID.String() != want || !id.Adopted || id.Copied {
				t.Errorf("adopted as %+v, %v; want %s", id, err, want)
			}
			if id, err := become.Identity(t.Context(), n, false); err != nil || id.UUID.String() == want || id.Adopted {
				t.Errorf("a new one is %+v, %v", id, err)
			}
		})
	}
}
