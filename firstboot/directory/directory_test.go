package directory_test

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const (
	account  = "xivo-mesh-0a1b2c"
	password = secret.Secret("a-password-nobody-guesses")
)

var (
	peerA = directory.Peer{UUID: uuid.MustParse("607796fc-24e2-4e26-8009-cbb48a205512"), Host: "xivo-a", Address: "10.0.0.1"}
	peerB = directory.Peer{UUID: uuid.MustParse("11111111-2222-4333-8444-555555555555"), Host: "xivo-b", Address: "10.0.0.2"}
	nameA = directory.Name(peerA.UUID)
	nameB = directory.Name(peerB.UUID)
)

// converge applies what differs, and fails when something still does.
func converge(t *testing.T, r engine.Resource) {
	t.Helper()
	diff, err := r.Diff(t.Context())
	if err != nil {
		t.Fatalf("diff: %v", err)
	}
	if len(diff) == 0 {
		t.Fatal("there was nothing to do")
	}
	if said := strings.Join(diff, "\n"); strings.Contains(said, password.Reveal()) {
		t.Errorf("the diff tells the password:\n%s", said)
	}
	for range 2 { // once more changes nothing
		if err := r.Apply(t.Context()); err != nil {
			t.Fatalf("apply: %v", err)
		}
		asWanted(t, r)
	}
}

func asWanted(t *testing.T, r engine.Resource) {
	t.Helper()
	if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
		t.Fatalf("should be as wanted: %v, %v", diff, err)
	}
}

func database(t *testing.T, era string) *pgx.Conn {
	t.Helper()
	conn, err := postgres.ConnectTo(t.Context(), server.Postgres(t, schema.SQL(era)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func text(t *testing.T, conn *pgx.Conn, sql string, args ...any) string {
	t.Helper()
	var s string
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&s); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// dump is all content of the tables, to see that nothing else changed.
func dump(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var all strings.Builder
	for _, table := range []string{"accesswebservice", "directories", "ctidirectories", "ctidirectoryfields", "cticontexts", "ctidisplays", "ctireversedirectories"} {
		all.WriteString(table + "\n" + text(t, conn, "SELECT coalesce(string_agg(r::text, E'\\n' ORDER BY r::text), '') FROM "+table+" r") + "\n")
	}
	return all.String()
}

// joined is the query with which XiVO makes xivo-dird's sources: what it does
// not return does not exist for anybody.
func joined(t *testing.T, conn *pgx.Conn, era string) string {
	t.Helper()
	on := "c.uri = d.uri"
	if era >= "16.13" {
		on = "c.directory_id = d.id"
	}
	return text(t, conn, `SELECT coalesce(string_agg(c.name || ' ' || d.uri || ' ' || d.xivo_username || ' ' || c.match_direct, E'\n' ORDER BY c.name), '')
		FROM ctidirectories c JOIN directories d ON `+on+` WHERE d.dirtype = 'xivo' AND d.xivo_username LIKE 'xivo-mesh-%'`)
}

func source(conn *pgx.Conn, p directory.Peer) engine.Resource {
	return directory.Source(conn, p, account, password, directory.Options{})
}

func TestOnEverySchema(t *testing.T) {
	for _, era := range schema.Eras {
		t.Run(era, func(t *testing.T) {
			conn := database(t, era)
			before := dump(t, conn)
			local := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'")
			switchboard := text(t, conn, "SELECT directories FROM cticontexts WHERE name = '__switchboard_directory'")

			converge(t, directory.Account(conn, &platform.Platform{}, account, password))
			converge(t, source(conn, peerA))
			converge(t, source(conn, peerB))
			asWanted(t, source(conn, peerA))

			want := nameB + ` https://10.0.0.2:9486 ` + account + ` ["firstname","lastname"]` + "\n" +
				nameA + ` https://10.0.0.1:9486 ` + account + ` ["firstname","lastname"]`
			if diff := cmp.Diff(want, joined(t, conn, era)); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
			if got, want := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'"), local+","+nameA+","+nameB; got != want {
				t.Errorf("context default lists %q, want %q", got, want)
			}
			if got := text(t, conn, "SELECT directories FROM cticontexts WHERE name = '__switchboard_directory'"); got != switchboard {
				t.Errorf("the switchboard's context lists %q, want %q", got, switchboard)
			}
			const fields = "SELECT string_agg(fieldname || value, ' ' ORDER BY fieldname) FROM ctidirectoryfields f JOIN ctidirectories c ON c.id = f.dir_id WHERE c.name = $1"
			if got, want := text(t, conn, fields, nameA), text(t, conn, fields, "internal"); got != want {
				t.Errorf("fields %q, want those of the local definition %q", got, want)
			}

			found, err := directory.Sources(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			wantFound := []directory.Found{
				{Name: nameA, Address: "10.0.0.1", OfMesh: true, Contexts: []string{"default"}},
				{Name: nameB, Address: "10.0.0.2", OfMesh: true, Contexts: []string{"default"}},
			}
			if diff := cmp.Diff(wantFound, found, cmpopts.IgnoreFields(directory.Found{}, "Digest")); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}

			converge(t, directory.NoSource(conn, nameB))
			asWanted(t, source(conn, peerA))
			if diff, err := directory.NoMeshRows(conn).Diff(t.Context()); err != nil || len(diff) != 1 || strings.Contains(diff[0], "607796fc") || strings.Contains(diff[0], "xivo-mesh-") {
				t.Errorf("it tells who the others are: %q, %v", diff, err)
			}
			converge(t, directory.NoMeshRows(conn))
			if diff := cmp.Diff(before, dump(t, conn)); diff != "" {
				t.Errorf("something is left, or changed (-before +after):\n%s", diff)
			}
		})
	}
}

// An upgrade adds columns at the end, and leaves what was there: 16.13's links the
// definitions to their sources, 17.x's gives each account a UUID.
func TestOnAnUpgradedDatabase(t *testing.T) {
	conn := database(t, "16.12")
	for _, sql := range []string{
		`ALTER TABLE ctidirectories ADD COLUMN directory_id integer REFERENCES directories (id) ON DELETE CASCADE`,
		`UPDATE ctidirectories SET directory_id = d.id FROM directories d WHERE d.uri = ctidirectories.uri`,
		`ALTER TABLE ctidirectories DROP COLUMN uri`,
		`ALTER TABLE directories ADD COLUMN dird_tenant varchar(255), ADD COLUMN dird_phonebook varchar(255)`,
		`ALTER TABLE accesswebservice ADD COLUMN uuid varchar(38) NOT NULL DEFAULT gen_random_uuid() UNIQUE`,
	} {
		exec(t, conn, sql)
	}
	local := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'")

	converge(t, directory.Account(conn, &platform.Platform{}, account, password))
	converge(t, source(conn, peerA))
	converge(t, source(conn, peerB))
	want := nameB + ` https://10.0.0.2:9486 ` + account + ` ["firstname","lastname"]` + "\n" +
		nameA + ` https://10.0.0.1:9486 ` + account + ` ["firstname","lastname"]`
	if diff := cmp.Diff(want, joined(t, conn, "16.13")); diff != "" {
		t.Errorf("sources (-want +got):\n%s", diff)
	}
	if got, want := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'"), local+","+nameA+","+nameB; got != want {
		t.Errorf("context default lists %q, want %q", got, want)
	}

	for _, name := range []string{nameA, nameB} {
		converge(t, directory.NoSource(conn, name))
	}
	if got := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'"); got != local {
		t.Errorf("context default lists %q once they are gone, want %q", got, local)
	}
}

func TestAccountOnAnUpgradedDatabase(t *testing.T) {
	conn := database(t, "15.20")
	exec(t, conn, `ALTER TABLE accesswebservice DROP COLUMN obj`)
	exec(t, conn, `ALTER TABLE accesswebservice ADD COLUMN acl varchar[] NOT NULL DEFAULT '{}'`)    // last, not where a fresh one has it
	exec(t, conn, `INSERT INTO accesswebservice (id, name, description) VALUES (1, 'by hand', '')`) // the sequence lags behind
	converge(t, directory.Account(conn, &platform.Platform{}, account, password))
	if got := text(t, conn, "SELECT acl::text FROM accesswebservice WHERE name = $1", account); got != "{confd.infos.read,confd.users.read}" {
		t.Errorf("rights %s", got)
	}

	exec(t, conn, `UPDATE accesswebservice SET passwd = 'old', disable = 1, acl = '{#}' WHERE name = $1`, account)
	converge(t, directory.Account(conn, &platform.Platform{}, account, password))

	exec(t, conn, `INSERT INTO accesswebservice (id, name, login, description) VALUES (99, 'twin', $1, '')`, account)
	if _, err := directory.Account(conn, &platform.Platform{}, account, password).Diff(t.Context()); err == nil || !strings.Contains(err.Error(), `"twin"`) {
		t.Errorf("two enabled accounts with one login: %v, want an error that names the other", err)
	}
}

func TestAnAccountOfTheSameNameThatIsNotOursStays(t *testing.T) {
	conn := database(t, "16.03")
	for _, c := range []struct{ name, columns, values string }{
		{"with a login of its own", "name, login, passwd", `'` + account + `', 'somebody', 'theirs'`},
		{"open to an address, without a login", "name, host", `'` + account + `', '10.0.0.9'`},
		{"with our login, under another name", "name, login, passwd", `'somebody', '` + account + `', 'theirs'`},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, conn, "INSERT INTO accesswebservice ("+c.columns+") VALUES ("+c.values+")")
			defer exec(t, conn, "DELETE FROM accesswebservice WHERE name IN ('somebody', '"+account+"')")
			before := dump(t, conn)
			ours := directory.Account(conn, &platform.Platform{}, account, password)
			_, differs := ours.Diff(t.Context())
			for _, err := range []error{differs, ours.Apply(t.Context())} {
				if err == nil || !strings.Contains(err.Error(), "web-service account") || !strings.Contains(err.Error(), "web interface") {
					t.Errorf("error %v, want one that names the account and what to do", err)
				}
			}
			if diff := cmp.Diff(before, dump(t, conn)); diff != "" {
				t.Errorf("it was changed:\n%s", diff)
			}
		})
	}
}

func TestSurroundings(t *testing.T) {
	conn := database(t, "16.03")
	wanted := func(t *testing.T, lists string) {
		t.Helper()
		converge(t, source(conn, peerA))
		if got := text(t, conn, "SELECT string_agg(name || ':' || directories, ' ' ORDER BY id) FROM cticontexts"); got != lists {
			t.Errorf("contexts %s, want %s", got, lists)
		}
	}
	for _, c := range []struct {
		name, contexts string // rows of name and directories
		lists, refused string
	}{
		{"no context called default", `('sales', 'internal')`, "sales:internal," + nameA, ""},
		{"an empty list beside it", `('default', 'internal'), ('other', '')`, "default:internal," + nameA + " other:", ""},
		{"a list that only has commas", `('default', 'internal'), ('other', ',,')`, "default:internal," + nameA + " other:,,", ""},
		{"a list that ends with a comma", `('default', 'internal,')`, "default:internal," + nameA, ""},
		{"a context twice", `('default', 'internal'), ('default', 'internal')`, "default:internal," + nameA + " default:internal," + nameA, ""},
		{"no context at all", "", "", "no context lists internal"},
		{"no context with the own users", `('default', 'xivodir')`, "", "set directory.contexts to some of default"},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, conn, "DELETE FROM cticontexts")
			if c.contexts != "" {
				exec(t, conn, "INSERT INTO cticontexts (name, directories, display) SELECT column1, column2, 'Display' FROM (VALUES "+c.contexts+") v")
			}
			if c.refused == "" {
				wanted(t, c.lists)
				converge(t, directory.NoSource(conn, nameA))
				return
			}
			before := dump(t, conn)
			if err := source(conn, peerA).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("error %v, want %q", err, c.refused)
			}
			if diff := cmp.Diff(before, dump(t, conn)); diff != "" {
				t.Errorf("half done:\n%s", diff)
			}
		})
	}
}

func TestContextSeparation(t *testing.T) {
	conn := database(t, "16.03")
	for _, c := range []struct {
		name, sql string
		want      bool
	}{
		{"off, as shipped", "SELECT 1", false},
		{"on", "UPDATE ctimain SET context_separation = 1", true},
		{"off again", "UPDATE ctimain SET context_separation = 0", false},
		{"a version without the option", "ALTER TABLE ctimain DROP COLUMN context_separation", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, conn, c.sql)
			if got, err := directory.ContextSeparation(t.Context(), conn); err != nil || got != c.want {
				t.Errorf("%v, %v", got, err)
			}
			converge(t, source(conn, peerA))
			converge(t, directory.NoSource(conn, nameA))
		})
	}
}

func TestSequencesMayLagOrBeMissing(t *testing.T) {
	conn := database(t, "16.03")
	exec(t, conn, "ALTER SEQUENCE directories_id_seq RESTART 1")
	exec(t, conn, "ALTER SEQUENCE ctidirectories_id_seq OWNED BY NONE")
	exec(t, conn, "ALTER TABLE ctidirectories ALTER id DROP DEFAULT")
	converge(t, source(conn, peerA))
	converge(t, source(conn, peerB))
}

func TestWhatAnOperatorMadeStaysAlone(t *testing.T) {
	for uri, host := range map[string]string{
		"https://10.0.0.1:9486": "10.0.0.1", "https://10.0.0.1": "10.0.0.1", "HTTPS://10.0.0.1:9486/": "10.0.0.1", " https://10.0.0.1:9486 ": "10.0.0.1",
		"https://Xivo-A.example.com.:9486": "xivo-a.example.com",
	} {
		t.Run(uri, func(t *testing.T) {
			conn := database(t, "16.03")
			peerA := peerA
			peerA.Known = []string{"a.example.com", "xivo-a.example.com"}
			converge(t, source(conn, peerA)) // first ours, then his
			exec(t, conn, `INSERT INTO directories (uri, dirtype, name, description, xivo_username, xivo_password) VALUES ($1, 'xivo', 'site-a', '', 'me', 'mine')`, uri)
			exec(t, conn, `INSERT INTO ctidirectories (name, uri, match_direct, match_reverse) VALUES ('sitea', $1, '["lastname"]', '')`, uri)
			exec(t, conn, `UPDATE cticontexts SET directories = directories || ',sitea' WHERE name = 'default'`)
			converge(t, source(conn, peerA))

			if got := text(t, conn, "SELECT directories FROM cticontexts WHERE name = 'default'"); got != "xivodir,internal,sitea" {
				t.Errorf("context default lists %q", got)
			}
			found, err := directory.Sources(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			want := []directory.Found{{Name: "sitea", Address: host, Contexts: []string{"default"}}}
			if diff := cmp.Diff(want, found, cmpopts.IgnoreFields(directory.Found{}, "Digest")); diff != "" {
				t.Errorf("found (-want +got):\n%s", diff)
			}
			if _, err := directory.NoSource(conn, "sitea").Diff(t.Context()); err == nil {
				t.Error("what is not ours could be removed")
			}
		})
	}
}

func TestContexts(t *testing.T) {
	conn := database(t, "16.03")
	lists := func() string {
		return text(t, conn, "SELECT string_agg(name || ':' || directories, ' ' ORDER BY id) FROM cticontexts")
	}
	exec(t, conn, `INSERT INTO cticontexts (name, directories, display) VALUES ('sales', 'internal', 'Display'), ('empty', '', 'Display')`)

	converge(t, source(conn, peerA))
	if got, want := lists(), "default:xivodir,internal,"+nameA+" __switchboard_directory:xivodir sales:internal,"+nameA+" empty:"; got != want {
		t.Errorf("auto: %s, want %s", got, want)
	}

	withOptions := func(o directory.Options) engine.Resource {
		return directory.Source(conn, peerA, account, password, o)
	}
	converge(t, withOptions(directory.Options{Contexts: []string{"empty"}}))
	if got, want := lists(), "default:xivodir,internal __switchboard_directory:xivodir sales:internal empty:"+nameA; got != want {
		t.Errorf("named: %s, want %s", got, want)
	}

	before, err := directory.Sources(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	converge(t, withOptions(directory.Options{Suspended: true}))
	if got, want := lists(), "default:xivodir,internal __switchboard_directory:xivodir sales:internal empty:"; got != want {
		t.Errorf("suspended: %s, want %s", got, want)
	}
	after, err := directory.Sources(t.Context(), conn)
	if err != nil || len(after) != 1 || after[0].Digest == before[0].Digest {
		t.Errorf("suspended: %v, %v; want the source kept, with another digest", after, err)
	}

	if _, err := withOptions(directory.Options{Contexts: []string{"salse"}}).Diff(t.Context()); err == nil || !strings.Contains(err.Error(), "sales") {
		t.Errorf("an unknown context: %v, want an error that names those there are", err)
	}
	exec(t, conn, `UPDATE cticontexts SET directories = 'xivodir'`)
	if _, err := source(conn, peerA).Diff(t.Context()); err == nil {
		t.Error("nobody would find the peer's users, and no error tells")
	}
}

func TestDamageIsRepaired(t *testing.T) {
	for _, era := range []string{"16.03", "16.16"} {
		conn := database(t, era)
		converge(t, source(conn, peerA))
		for name, damage := range map[string][]string{
			"another password":       {`UPDATE directories SET xivo_password = 'old' WHERE name = '` + nameA + `'`},
			"another address":        {`UPDATE directories SET uri = 'https://10.0.0.9:9486' WHERE name = '` + nameA + `'`},
			"no field":               {`DELETE FROM ctidirectoryfields WHERE dir_id = (SELECT id FROM ctidirectories WHERE name = '` + nameA + `')`},
			"text that is no JSON":   {`UPDATE ctidirectories SET match_direct = 'firstname,lastname' WHERE name = '` + nameA + `'`},
			"no definition":          {`DELETE FROM ctidirectoryfields WHERE dir_id = (SELECT id FROM ctidirectories WHERE name = '` + nameA + `')`, `DELETE FROM ctidirectories WHERE name = '` + nameA + `'`},
			"no source":              {`DELETE FROM directories WHERE name = '` + nameA + `'`},
			"the source twice":       {`INSERT INTO directories (uri, dirtype, name, description) SELECT uri, dirtype, name, description FROM directories WHERE name = '` + nameA + `'`},
			"the definition twice":   {`INSERT INTO ctidirectories (name, match_direct, match_reverse) VALUES ('` + nameA + `', '', '')`},
			"a space in the context": {`UPDATE cticontexts SET directories = replace(directories, ',` + nameA + `', ', ` + nameA + `')`},
			"twice in the context":   {`UPDATE cticontexts SET directories = directories || ',` + nameA + `' WHERE name = 'default'`},
		} {
			t.Run(era+" "+name, func(t *testing.T) {
				for _, sql := range damage {
					exec(t, conn, sql)
				}
				converge(t, source(conn, peerA))
			})
		}
	}
}

func TestALocalMatchThatIsNoneIsNotCopied(t *testing.T) {
	conn := database(t, "16.03")
	exec(t, conn, `UPDATE ctidirectories SET match_direct = '' WHERE name = 'internal'`)
	converge(t, source(conn, peerA))
	if got := text(t, conn, "SELECT match_direct FROM ctidirectories WHERE name = $1", nameA); got != `["firstname","lastname"]` {
		t.Errorf("match_direct is %s", got)
	}
}

func TestAnAddressThatWouldBreakEverySourceIsRefused(t *testing.T) {
	conn := database(t, "16.03")
	for _, address := range []string{"", "fe80::1", "10.0.0.1:9486", "10.0.0.1/", "https://10.0.0.1"} {
		p := peerA
		p.Address = address
		if err := source(conn, p).Apply(t.Context()); err == nil {
			t.Errorf("address %q was taken", address)
		}
	}
}
