package firstboot

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const (
	profileFile = "/etc/profile.d/xivo_uuid.sh"
	managerFile = "/etc/systemd/system.conf"
	oldUUID     = "11111111-2222-4333-8444-555555555555"
	peerUUID    = "607796fc-24e2-4e26-8009-cbb48a205512"
)

// manager is a service manager that remembers its environment, and runs nothing.
type manager struct {
	platform.Init
	environment map[string]string
	restarted   []string
}

func (m *manager) Environment(_ context.Context, key string) (string, error) {
	return m.environment[key], nil
}
func (m *manager) SetEnvironment(_ context.Context, key, value string) error {
	m.environment[key] = value
	return nil
}
func (m *manager) Active(context.Context, string) (bool, error) { return true, nil }
func (m *manager) Restart(_ context.Context, service string) error {
	m.restarted = append(m.restarted, service)
	return nil
}

// aNode is a server of a version with a database, about to become and settle.
func aNode(t *testing.T, version string, db *pgx.Conn) *Node {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		platform.VersionFile:    version + "\n",
		profileFile:             "export XIVO_UUID=" + oldUUID + "\n",
		managerFile:             "[Manager]\nDefaultEnvironment=\"XIVO_UUID=" + oldUUID + "\"\n",
		"/etc/default/xivo":     "startup=yes\nexport XIVO_UUID=" + oldUUID + "\n",
		platform.CertificateKey: "",
	} {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/etc/xivo-ctid-ng/conf.d", platform.StateDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n, err := Open(root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.Platform.Init = &manager{environment: map[string]string{"XIVO_UUID": oldUUID}}
	n.Config = &cloudinit.Config{Version: 1, Secret: "a secret of this mesh", Topology: cloudinit.TopologyMesh}
	n.Journal = newJournal(n.Platform.Path(journalFile), n.Instance, Identity{
		UUID: uuid.MustParse("99999999-2222-4333-8444-555555555555"), Hostname: "xivo-b", Name: "xivo-b-99999999", Advertise: "10.0.0.2",
	})
	n.db = db
	return n
}

func open(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := postgres.ConnectTo(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func ask[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (answer T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

func step(t *testing.T, p Phase, name string) Step {
	t.Helper()
	for _, s := range p.Steps {
		if s.Name == name {
			return s
		}
	}
	t.Fatalf("there is no step %s.%s", p.Name, name)
	return Step{}
}

func contents(t *testing.T, n *Node, file string) string {
	t.Helper()
	raw, err := os.ReadFile(n.Platform.Path(file))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// What the daemons of each release read, where they read it, after the steps
// that write it have run. The columns are those of the fact sheet.
func TestEveryVersionIsWrittenAsItsDaemonsRead(t *testing.T) {
	dsn := server.Postgres(t, "")
	const (
		contacts  = "{confd.infos.read,confd.users.read}"
		presences = "{confd.infos.read,confd.users.read,ctid-ng.users.*.presences.read,ctid-ng.lines.*.presences.read}"
		byURI     = "c.uri = d.uri"
		byID      = "c.directory_id = d.id"
	)
	for _, v := range []struct {
		version     string
		schema      string // the release whose tables these are
		environment bool   // daemons take the UUID from it
		rights      string // of the account; "" where there are none
		link        string // of a definition to its directory
		checkURL    bool
		listens     bool // xivo-ctid, for its peers
		credentials bool // of the peers, for xivo-ctid-ng
	}{
		{"15.19", "15.20", false, "", byURI, true, true, false},
		{"15.20", "15.20", false, "", byURI, true, true, false},
		{"16.01", "16.03", false, contacts, byURI, false, true, false},
		{"16.03", "16.03", true, contacts, byURI, false, true, false},
		{"16.12", "16.12", true, contacts, byURI, false, true, false},
		{"16.13", "16.13", true, contacts, byID, false, true, false},
		{"16.16", "16.16", true, presences, byID, false, true, true},
		{"17.17", "17.17", true, presences, byID, false, false, true},
		{"18.03", "17.17", true, presences, byID, false, false, true},
	} {
		t.Run(v.version, func(t *testing.T) {
			db := open(t, server.Database(t, dsn, schema.SQL(v.schema)))
			n := aNode(t, v.version, db)
			if err := n.checkSchema(t.Context()); err != nil {
				t.Fatal(err)
			}
			n.members = []mesh.Member{{UUID: uuid.MustParse(peerUUID), Host: "xivo-a", Name: "xivo-a-607796fc", Address: "10.0.0.1", Seen: time.Now()}}
			for _, s := range []Step{
				step(t, BecomePhase, "uuid-database"), step(t, BecomePhase, "uuid-files"), step(t, BecomePhase, "uuid-manager"),
				step(t, BecomePhase, "ctid-config"), step(t, ConvergePhase, "web-service"),
				step(t, ConvergePhase, "directories"), step(t, ConvergePhase, "dird"), step(t, ConvergePhase, "ctid-ng"),
			} {
				if _, err := s.run(t.Context(), n, s.Name); err != nil {
					t.Fatal(err)
				}
				if again, err := s.run(t.Context(), n, s.Name); again != nil || err != nil {
					t.Errorf("%s, a second time: %v, %v", s.Name, again, err)
				}
			}

			id := n.Identity().UUID.String()
			if got := ask[string](t, db, "SELECT uuid FROM infos"); got != id {
				t.Errorf("the database has the UUID %s", got)
			}
			outside := oldUUID // who does not read it is left alone
			if v.environment {
				outside = id
			}
			init := n.Platform.Init.(*manager)
			for place, got := range map[string]string{
				profileFile: contents(t, n, profileFile), managerFile: contents(t, n, managerFile),
				"/etc/default/xivo": contents(t, n, "/etc/default/xivo"), "the service manager": init.environment["XIVO_UUID"],
			} {
				if !strings.Contains(got, outside) || strings.Count(got, "-4333-") != 1 {
					t.Errorf("%s has %q, want %s", place, got, outside)
				}
			}

			// xivo-confd: the password of the enabled row with that login.
			account := n.Credentials().Account()
			if got := ask[string](t, db, "SELECT string_agg(passwd, ' ') FROM accesswebservice WHERE login = $1 AND disable = 0 AND host IS NULL", account); got != n.Credentials().DirectoryPassword().Reveal() {
				t.Error("the account has another password, or is there twice")
			}
			if v.rights != "" {
				if got := ask[string](t, db, "SELECT acl::text FROM accesswebservice WHERE login = $1", account); got != v.rights {
					t.Errorf("the account has the rights %s", got)
				}
			}

			// xivo-confgen: definitions joined with their directories, for xivo-dird.
			const source = `SELECT string_agg(c.name || ' ' || d.uri || ' ' || d.xivo_username, ' ') FROM ctidirectories c JOIN directories d ON `
			want := directory.Name(uuid.MustParse(peerUUID)) + " https://10.0.0.1:9486 " + account
			if got := ask[string](t, db, source+v.link+" WHERE d.dirtype = 'xivo' AND d.xivo_password <> ''"); got != want {
				t.Errorf("sources: %q, want %q", got, want)
			}

			discovery := map[string]any{"advertise_address": "10.0.0.2"}
			wantCtid := map[string]any{"service_discovery": discovery}
			wantNG := map[string]any{"service_discovery": discovery}
			if v.checkURL {
				wantCtid["service_discovery"] = map[string]any{"advertise_address": "10.0.0.2", "check_url": "http://10.0.0.2:9495/0.1/infos"}
			}
			if v.listens {
				wantCtid["rest_api"] = map[string]any{"http": map[string]any{"listen": "0.0.0.0"}}
			}
			if v.credentials {
				wantNG["remote_credentials"] = map[string]any{directory.Name(uuid.MustParse(peerUUID)): map[string]any{
					"xivo_uuid": peerUUID, "service_id": account, "service_key": n.Credentials().DirectoryPassword().Reveal(),
				}}
			} else {
				wantNG = nil
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
			wantRestarts := []string{"xivo-dird"}
			if v.credentials {
				wantRestarts = append(wantRestarts, "xivo-ctid-ng")
			}
			if diff := cmp.Diff(wantRestarts, init.restarted); diff != "" {
				t.Errorf("restarted (-want +got):\n%s", diff)
			}
		})
	}
}

// files is all that is below a root, to see that nothing was written.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		found[name] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestAVersionFileThatDisagreesWithTheDatabaseIsRefused(t *testing.T) {
	dsn := server.Postgres(t, "")
	databases := map[string]*pgx.Conn{}
	for _, era := range schema.Eras {
		databases[era] = open(t, server.Database(t, dsn, schema.SQL(era)))
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
				n := aNode(t, c.version, databases[era])
				if err := n.checkSchema(t.Context()); (err == nil) != fits {
					t.Errorf("fits: %t, but the check says %v", fits, err)
				}
			})
		}
		if c.other == "" {
			continue
		}
		for verb, do := range map[string]func(context.Context, *Node) error{
			"become": func(ctx context.Context, n *Node) error {
				n.Config.Identity, n.Journal = cloudinit.IdentityRegenerate, nil
				_, _, err := n.Begin(ctx, false)
				return err
			},
			"seal": func(ctx context.Context, n *Node) error {
				_, err := n.Seal(ctx, SealOptions{AllowConfigured: true})
				return err
			},
		} {
			t.Run(verb+" of "+c.version+" on the database of "+c.other+" writes nothing", func(t *testing.T) {
				n := aNode(t, c.version, databases[c.other])
				before := files(t, n.Platform.Root)
				err := do(t.Context(), n)
				if err == nil {
					t.Fatal("it went ahead")
				}
				for _, part := range append(c.names, platform.VersionFile, "XiVO "+c.version) {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("the error does not name %q: %v", part, err)
					}
				}
				if diff := cmp.Diff(before, files(t, n.Platform.Root)); diff != "" {
					t.Errorf("written:\n%s", diff)
				}
			})
		}
	}
}

func TestANodeWaitsForTheWizard(t *testing.T) {
	dsn := server.Postgres(t, "")
	mark := func(t *testing.T, n *Node) {
		t.Helper()
		file := n.Platform.Path(platform.WizardMarkerFile)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	configure := func(t *testing.T, n *Node) {
		t.Helper()
		if _, err := n.db.Exec(t.Context(), "UPDATE general SET configured = true"); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, version, schema string
		distract, pass        func(*testing.T, *Node)
	}{
		{"15.20, which leaves a file", "15.20", "15.20", func(*testing.T, *Node) {}, mark},
		{"16.05, the last that does", "16.05", "16.12", configure, mark},
		{"16.06, which marks the database, whatever file is there", "16.06", "16.12", mark, configure},
		{"18.03", "18.03", "17.17", mark, configure},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := aNode(t, c.version, open(t, server.Database(t, dsn, schema.SQL(c.schema))))
			for _, p := range []Phase{BecomePhase, SettlePhase} {
				if err := n.Journal.stamp(p.Name, done); err != nil {
					t.Fatal(err)
				}
			}
			c.distract(t, n)
			if why := n.Waits(t.Context()); !strings.Contains(why, "wizard has not been passed") {
				t.Errorf("before: waits for %q", why)
			}
			if s, err := n.ReadStatus(t.Context()); err != nil || s.State != Waiting {
				t.Errorf("before: %s, %v", s.State, err)
			}
			c.pass(t, n)
			if why := n.Waits(t.Context()); why != "" {
				t.Errorf("after: waits for %q", why)
			}
		})
	}

	t.Run("a database that does not tell is not taken for a yes", func(t *testing.T) {
		n := aNode(t, "16.16", open(t, server.Database(t, dsn, "CREATE TABLE general (configured boolean)")))
		for _, p := range []Phase{BecomePhase, SettlePhase} {
			if err := n.Journal.stamp(p.Name, done); err != nil {
				t.Fatal(err)
			}
		}
		if why := n.Waits(t.Context()); !strings.Contains(why, "general.configured") {
			t.Errorf("waits for %q", why)
		}
		if err := n.writeState(statusFile, Status{State: Joined, Boot: n.Platform.BootID()}); err != nil {
			t.Fatal(err)
		}
		if why := n.Waits(t.Context()); why != "" {
			t.Errorf("a node that once converged waits for %q", why)
		}
	})
}

func TestALaterVersionBecomesAndSharesNothing(t *testing.T) {
	// As late ones have it: no account, no directory is in this database.
	db := open(t, server.Postgres(t, schema.SQL("17.17")+`DROP TABLE accesswebservice, ctidirectoryfields, ctidirectories, directories, cticontexts CASCADE;`))
	n := aNode(t, "18.04", db)
	if err := n.checkSchema(t.Context()); err != nil {
		t.Error(err)
	}
	for _, s := range []Step{step(t, BecomePhase, "old-keys"), step(t, BecomePhase, "service-keys")} {
		if _, err := s.run(t.Context(), n, s.Name); err != nil {
			t.Errorf("%s: %v", s.Name, err)
		}
	}
	if _, err := SealOperations()[2].run(t.Context(), n, "directory-rows"); err != nil || SealOperations()[2].Name != "directory-rows" {
		t.Errorf("seal: %v", err)
	}
	for _, s := range []Step{step(t, BecomePhase, "uuid-database"), step(t, BecomePhase, "uuid-files"), step(t, BecomePhase, "ctid-config")} {
		if diff, err := s.run(t.Context(), n, s.Name); err != nil || diff == nil {
			t.Errorf("%s: %v, %v", s.Name, diff, err)
		}
	}
	n.members = []mesh.Member{{UUID: uuid.MustParse(peerUUID), Host: "xivo-a", Name: "xivo-a-607796fc", Address: "10.0.0.1", Seen: time.Now()}}
	for _, name := range []string{"web-service", "wan", "members", "upstreams", "directories", "dird", "ctid-ng", "ctid", "canary", "presences"} {
		if diff, err := step(t, ConvergePhase, name).run(t.Context(), n, name); err != nil || diff != nil {
			t.Errorf("%s: %v, %v; want nothing done, nobody asked", name, diff, err)
		}
	}
	n.members = nil
	if s := n.conclude(Status{}, nil); s.State != Alone {
		t.Errorf("without peers: %s, %s", s.State, s.Why)
	}
	n.hasPeers = true
	if s := n.conclude(Status{}, nil); s.State != Waiting || !strings.Contains(s.Why, "18.04") {
		t.Errorf("with peers: %s, %s", s.State, s.Why)
	}
}

func TestAnAdoptedServerKeepsTheUUIDOfItsDaemons(t *testing.T) {
	dsn := server.Postgres(t, "")
	for _, c := range []struct {
		name, version, schema string
		change                func(*Node)
		environment           bool
	}{
		{"16.01: the database's, nothing else counts", "16.01", "16.03", func(*Node) {}, false},
		{"16.03: the database's, from which the others are made", "16.03", "16.03", func(*Node) {}, false},
		{"17.03: the service manager's", "17.03", "17.17", func(*Node) {}, true},
		{"17.03, not in the service manager: the file's", "17.03", "17.17", func(n *Node) { n.Platform.Init.(*manager).environment = nil }, true},
		{"17.03, in neither: the database's", "17.03", "17.17", func(n *Node) {
			n.Platform.Init.(*manager).environment = nil
			os.Remove(n.Platform.Path(profileFile))
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			db := open(t, server.Database(t, dsn, schema.SQL(c.schema)))
			n := aNode(t, c.version, db)
			c.change(n)
			want := oldUUID
			if !c.environment {
				want = ask[string](t, db, "SELECT uuid FROM infos")
			}
			if got, err := identity.UUID(t.Context(), db, n.Platform); err != nil || got.String() != want {
				t.Errorf("%s, %v; want %s", got, err, want)
			}
		})
	}
}
