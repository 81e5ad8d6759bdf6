package identity_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

var (
	id  = uuid.MustParse("607796fc-24e2-4e26-8009-cbb48a205512")
	old = uuid.MustParse("11111111-2222-4333-8444-555555555555")
)

type resource interface {
	Diff(context.Context) ([]string, error)
	Apply(context.Context) error
}

func converge(t *testing.T, r resource) {
	t.Helper()
	if diff, err := r.Diff(t.Context()); err != nil || len(diff) == 0 {
		t.Fatalf("before apply: %v, %v; want a difference", diff, err)
	} else if said := strings.Join(diff, " "); strings.Contains(said, old.String()) {
		t.Errorf("whose server it was is told: %s", said)
	}
	for range 2 {
		if err := r.Apply(t.Context()); err != nil {
			t.Fatalf("apply: %v", err)
		}
		if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
			t.Fatalf("after apply: %v, %v", diff, err)
		}
	}
}

func root(t *testing.T, files map[string]string) *platform.Platform {
	t.Helper()
	p := &platform.Platform{Root: t.TempDir()}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(p.Path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p.Path(name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func content(t *testing.T, p *platform.Platform, name string) string {
	t.Helper()
	raw, err := os.ReadFile(p.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func database(t *testing.T, era string) *pgx.Conn {
	t.Helper()
	return open(t, server.Postgres(t, schema.SQL(era)))
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

func TestNodeName(t *testing.T) {
	for host, want := range map[string]string{
		"xivo":                  "xivo-607796fc",
		"XiVO-A.example.org":    "xivo-a-607796fc",
		"a__b":                  "a-b-607796fc",
		"-été-":                 "t-607796fc",
		"":                      "xivo-607796fc",
		strings.Repeat("a", 99): strings.Repeat("a", 54) + "-607796fc",
	} {
		if got := identity.NodeName(host, id); got != want {
			t.Errorf("NodeName(%q) = %q, want %q", host, got, want)
		}
	}
}

func TestSlugIsAlwaysAConsulName(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := identity.Slug(rapid.String().Draw(t, "host"))
		if s == "" || len(s) > 54 || strings.Trim(s, "-") != s || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			t.Errorf("slug %q", s)
		}
		if again := identity.Slug(s); again != s {
			t.Errorf("slug of a slug: %q, want %q", again, s)
		}
	})
}

func TestUUIDInFiles(t *testing.T) {
	const (
		profile = "/etc/profile.d/xivo_uuid.sh"
		systemd = "/etc/systemd/system.conf"
		sysv    = "/etc/default/xivo"
	)
	wantProfile := "export XIVO_UUID=" + id.String() + "\n"
	set := `"XIVO_UUID=` + id.String() + `"`
	tests := []struct {
		name          string
		systemd, sysv string
		wantSystemd   string
		wantSysv      string
	}{
		{
			name:        "replaced, other variables and lines kept",
			systemd:     "[Manager]\n#LogLevel=info\nDefaultEnvironment=\"LANG=C\" \"XIVO_UUID=" + old.String() + "\" FOO=bar\n",
			sysv:        "startup=yes\nexport XIVO_UUID=" + old.String() + "\nLAST=1\n",
			wantSystemd: "[Manager]\n#LogLevel=info\nDefaultEnvironment=\"LANG=C\" " + set + " FOO=bar\n",
			wantSysv:    "startup=yes\nexport XIVO_UUID=" + id.String() + "\nLAST=1\n",
		},
		{
			name:        "an old one before the one that counts goes",
			systemd:     "[Manager]\nDefaultEnvironment=XIVO_UUID=" + old.String() + "\nDefaultEnvironment='XIVO_UUID=x'\n",
			sysv:        "XIVO_UUID=" + old.String() + "\nexport XIVO_UUID=x\n",
			wantSystemd: "[Manager]\nDefaultEnvironment=" + set + "\nDefaultEnvironment=" + set + "\n",
			wantSysv:    "export XIVO_UUID=" + id.String() + "\n",
		},
		{
			name:        "added to a line with other variables",
			systemd:     "[Manager]\nDefaultEnvironment=LANG=C\n",
			sysv:        "startup=yes\n",
			wantSystemd: "[Manager]\nDefaultEnvironment=LANG=C " + set + "\n",
			wantSysv:    "startup=yes\nexport XIVO_UUID=" + id.String() + "\n",
		},
		{
			name:        "added where it was never set",
			systemd:     "# a comment\n[Manager]\n#DefaultEnvironment=\n",
			wantSystemd: "# a comment\n[Manager]\nDefaultEnvironment=" + set + "\n#DefaultEnvironment=\n",
			wantSysv:    "export XIVO_UUID=" + id.String() + "\n",
		},
		{
			name:        "set again after a line that takes all back",
			systemd:     "[Manager]\nDefaultEnvironment=XIVO_UUID=x\nDefaultEnvironment=\n",
			wantSystemd: "[Manager]\nDefaultEnvironment=" + set + "\nDefaultEnvironment=" + set + "\n",
			wantSysv:    "export XIVO_UUID=" + id.String() + "\n",
		},
		{
			name:        "an empty file",
			wantSystemd: "[Manager]\nDefaultEnvironment=" + set + "\n",
			wantSysv:    "export XIVO_UUID=" + id.String() + "\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := root(t, map[string]string{systemd: tt.systemd, sysv: tt.sysv})
			converge(t, identity.UUIDInFiles(p, id))
			got := map[string]string{profile: content(t, p, profile), systemd: content(t, p, systemd), sysv: content(t, p, sysv)}
			want := map[string]string{profile: wantProfile, systemd: tt.wantSystemd, sysv: tt.wantSysv}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}

	t.Run("files that are not there", func(t *testing.T) {
		converge(t, identity.UUIDInFiles(root(t, nil), id))
	})
}

func TestUUIDInDatabase(t *testing.T) {
	conn := database(t, "17.17")
	version := text(t, conn, "SELECT wazo_version FROM infos")
	converge(t, identity.UUIDInDatabase(conn, id))
	if got, err := identity.DatabaseUUID(t.Context(), conn); err != nil || got != id {
		t.Errorf("uuid %s, %v", got, err)
	}
	if got := text(t, conn, "SELECT wazo_version FROM infos"); got != version {
		t.Errorf("version %s, want %s kept", got, version)
	}

	if diff, err := identity.UUIDInDatabase(conn, uuid.Nil).Diff(t.Context()); err != nil || len(diff) != 1 || strings.Contains(diff[0], id.String()) {
		t.Errorf("of a sealed image: %q, %v", diff, err)
	}

	exec(t, conn, "INSERT INTO infos (uuid, wazo_version) VALUES ($1, '17.17')", old.String())
	if err := identity.UUIDInDatabase(conn, id).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "2 rows") {
		t.Errorf("two rows: %v, want a refusal", err)
	}
	exec(t, conn, "DELETE FROM infos")
	if err := identity.UUIDInDatabase(conn, id).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "0 rows") {
		t.Errorf("no row: %v, want a refusal", err)
	}
}

func TestForeignAddresses(t *testing.T) {
	conn := database(t, "16.03")
	exec(t, conn, "CREATE TABLE provisioning (id serial, net4_ip varchar(39) NOT NULL, net4_ip_rest varchar(39) NOT NULL)")
	const base = "/var/lib/xivo-provd/jsondb/configs/base"
	ours := func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.1") }
	for _, c := range []struct {
		name, netiface, disable, provisioning, provd string
		want                                         []string
	}{
		{"before the wizard", "", "0", "", "", nil},
		{"our own", "10.0.0.1", "0", "10.0.0.1", "10.0.0.1", nil},
		{"every address, and loopback", "0.0.0.0", "0", "127.0.0.1", "0.0.0.0", nil},
		{"a name", "", "0", "provd", "provd.example.com", nil},
		{"another machine's in an interface", "10.0.0.9", "0", "10.0.0.1", "10.0.0.1", []string{"network configuration of eth0 holds 10.0.0.9"}},
		{"of an interface that is off", "10.0.0.9", "1", "10.0.0.1", "10.0.0.1", nil},
		{"another machine's in the provisioning", "", "0", "10.0.0.9", "10.0.0.1", []string{"provisioning configuration holds 10.0.0.9"}},
		{"another machine's in provd", "", "0", "10.0.0.1", "10.0.0.9", []string{base + " holds 10.0.0.9"}},
		{"another machine's everywhere", "10.0.0.9", "0", "10.0.0.9", "10.0.0.9", []string{"eth0", "provisioning", base}},
	} {
		t.Run(c.name, func(t *testing.T) {
			exec(t, conn, "DELETE FROM netiface")
			exec(t, conn, "DELETE FROM provisioning")
			exec(t, conn, "INSERT INTO netiface (ifname, address, disable, options) VALUES ('eth0', nullif($1, ''), "+c.disable+", '')", c.netiface)
			exec(t, conn, "INSERT INTO provisioning (net4_ip, net4_ip_rest) VALUES ($1, '127.0.0.1')", c.provisioning)
			p := root(t, map[string]string{base: `{"id": "base", "raw_config": {"ip": "` + c.provd + `", "ntp_ip": "10.0.0.8"}}`})
			got, err := identity.ForeignAddresses(t.Context(), conn, p, ours)
			if err != nil || len(got) != len(c.want) {
				t.Fatalf("%q, %v; want %q", got, err, c.want)
			}
			for i := range got {
				if !strings.Contains(got[i], c.want[i]) {
					t.Errorf("%q, want %q", got[i], c.want[i])
				}
			}
		})
	}
	t.Run("a server without provd", func(t *testing.T) {
		exec(t, conn, "DROP TABLE provisioning")
		if got, err := identity.ForeignAddresses(t.Context(), conn, root(t, nil), ours); err != nil || len(got) != 1 {
			t.Errorf("%q, %v; want what the table netiface tells", got, err)
		}
	})
	t.Run("a file of provd's that is damaged", func(t *testing.T) {
		_, err := identity.ForeignAddresses(t.Context(), conn, root(t, map[string]string{base: "{"}), ours)
		if err == nil || !strings.Contains(err.Error(), base) {
			t.Errorf("error %v, want one that names the file", err)
		}
	})
}

func TestHostname(t *testing.T) {
	conn := database(t, "16.03")
	p := root(t, map[string]string{
		"/etc/hostname":         "xivo\n",
		"/etc/hosts":            "127.0.0.1\tlocalhost\n127.0.1.1\txivo.localdomain localhost.localdomain xivo\n10.0.0.9 printer # not us\n",
		"/etc/xivo/common.conf": "# generated\nXIVO_HOSTNAME=\"xivo\"\nXIVO_DOMAIN=\"localdomain\"\nXIVO_VOIP_IFACE=\"eth0\"\n",
	})
	converge(t, identity.Hostname(conn, p, "xivo-b", ""))

	want := map[string]string{
		"/etc/hostname":         "xivo-b\n",
		"/etc/hosts":            "127.0.0.1\tlocalhost\n127.0.1.1\txivo-b.localdomain localhost.localdomain xivo-b\n10.0.0.9 printer # not us\n",
		"/etc/xivo/common.conf": "# generated\nXIVO_HOSTNAME=\"xivo-b\"\nXIVO_DOMAIN=\"localdomain\"\nXIVO_VOIP_IFACE=\"eth0\"\n",
	}
	got := map[string]string{}
	for name := range want {
		got[name] = content(t, p, name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if got := text(t, conn, "SELECT hostname || '.' || domain FROM resolvconf"); got != "xivo-b.localdomain" {
		t.Errorf("resolvconf: %s", got)
	}

	converge(t, identity.Hostname(conn, p, "xivo-b", "example.org"))

	// What cloud-init writes is as good as what we do.
	if err := os.WriteFile(p.Path("/etc/hosts"), []byte("127.0.1.1 xivo-b.example.org xivo-b\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if diff, err := identity.Hostname(conn, p, "xivo-b", "example.org").Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("a good line of others differs: %v, %v", diff, err)
	}

	exec(t, conn, "DELETE FROM resolvconf")
	if diff, err := identity.Hostname(conn, p, "xivo-b", "example.org").Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("before the wizard: %v, %v", diff, err)
	}
}

func TestServiceKeys(t *testing.T) {
	conn := database(t, "16.16")
	exec(t, conn, `INSERT INTO accesswebservice (name, login, passwd) VALUES ('crm', 'crm', 'of an administrator'), ('xivo-mesh-0a1b2c', 'xivo-mesh-0a1b2c', 'of the mesh')`)
	exec(t, conn, `UPDATE directories SET xivo_username = 'xivo-wizard', xivo_password = (SELECT passwd FROM accesswebservice WHERE login = 'xivo-wizard')`)
	p := root(t, nil)
	const keys = "SELECT string_agg(login || passwd, ' ' ORDER BY login) FROM accesswebservice WHERE login LIKE 'xivo-%' AND login NOT LIKE 'xivo-mesh-%'"
	before := text(t, conn, keys)

	converge(t, identity.NoServiceKeys(conn, p))
	converge(t, identity.ServiceKeys(conn, p))
	if after := text(t, conn, keys); after == before || strings.Count(after, " ") != strings.Count(before, " ") {
		t.Errorf("keys %q after %q; want others for the same accounts", after, before)
	}
	if got := text(t, conn, "SELECT string_agg(passwd, ', ' ORDER BY login) FROM accesswebservice WHERE login IN ('crm', 'xivo-mesh-0a1b2c')"); got != "of an administrator, of the mesh" {
		t.Errorf("passwords of others are now %q", got)
	}
	if got := text(t, conn, "SELECT count(*)::text FROM directories d JOIN accesswebservice a ON a.login = d.xivo_username AND a.passwd = d.xivo_password"); got != "1" {
		t.Error("the local source's copy of the key was not changed with it")
	}
}

// keyTool stands in for xivo-update-keys: up to 15.20 it makes a random key for
// each service that it is given, later a file for each account (here: those of
// the variable ACCOUNTS). It says what it was called with.
const keyTool = `#!/bin/sh
echo "xivo-update-keys $*" >>"$CALLS"
[ $# -gt 0 ] || set -- $ACCOUNTS
for service; do
	echo "service_key: $(cat /proc/sys/kernel/random/uuid)" >"$KEYS/$service-key.yml"
done
`

// What the seal takes out, a first boot gives back: in every release that
// service has a key afterwards, and another one.
func TestServiceKeysOfEveryEra(t *testing.T) {
	dsn := server.Postgres(t, "")
	files := []string{"xivo-agentd-cli", "xivo-agid", "xivo-ctid", "xivo-dird-phoned"}
	accounts := []string{"xivo-agentd-cli", "xivo-agid", "xivo-ctid", "xivo-ctid-ng", "xivo-dird-phoned"}
	for _, c := range []struct {
		name, version, schema string
		services              []string
		calls                 string
	}{
		{"15.19: a random key in a file each", "15.19", "15.20", files, "xivo-update-keys xivo-agentd-cli\nxivo-update-keys xivo-agid\nxivo-update-keys xivo-ctid\nxivo-update-keys xivo-dird-phoned\n"},
		{"15.20: likewise", "15.20", "15.20", files, "xivo-update-keys xivo-agentd-cli\nxivo-update-keys xivo-agid\nxivo-update-keys xivo-ctid\nxivo-update-keys xivo-dird-phoned\n"},
		{"16.01: the files follow the accounts", "16.01", "16.03", accounts, "xivo-update-keys \n"},
		{"16.03: likewise", "16.03", "16.03", accounts, "xivo-update-keys \n"},
		{"16.13: an account more", "16.13", "16.13", append(accounts[:5:5], "xivo-wizard"), "xivo-update-keys \n"},
		{"18.03: likewise", "18.03", "17.17", append(accounts[:5:5], "xivo-wizard"), "xivo-update-keys \n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn := open(t, server.Database(t, dsn, schema.SQL(c.schema)))
			p := detected(t, c.version)
			dir := p.Path("/var/lib/xivo-auth-keys")
			bin, calls := t.TempDir(), filepath.Join(t.TempDir(), "calls")
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(bin, "xivo-update-keys"), []byte(keyTool), 0o755)); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			t.Setenv("KEYS", dir)
			t.Setenv("CALLS", calls)
			t.Setenv("ACCOUNTS", strings.Join(c.services, " "))
			before := map[string]string{}
			for _, s := range c.services {
				before[s] = "of the original"
				if err := os.WriteFile(filepath.Join(dir, s+"-key.yml"), []byte(before[s]), 0o640); err != nil {
					t.Fatal(err)
				}
			}

			converge(t, identity.NoServiceKeys(conn, p))
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("sealed, and still there: %v", left)
			}
			keys := identity.ServiceKeys(conn, p)
			if diff, err := keys.Diff(t.Context()); err != nil || len(diff) < len(c.services) {
				t.Errorf("before: %q, %v", diff, err)
			}
			if err := keys.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff, err := keys.Diff(t.Context()); err != nil || diff != nil {
				t.Errorf("after: %q, %v", diff, err)
			}
			seen := map[string]bool{}
			for _, s := range c.services {
				key := content(t, p, "/var/lib/xivo-auth-keys/"+s+"-key.yml")
				if key == before[s] || seen[key] {
					t.Errorf("%s: the original's key, or another service's: %s", s, key)
				}
				seen[key] = true
			}
			if said, _ := os.ReadFile(calls); string(said) != c.calls {
				t.Errorf("called %q, want %q", said, c.calls)
			}

			one := filepath.Join(dir, c.services[0]+"-key.yml")
			other := content(t, p, "/var/lib/xivo-auth-keys/"+c.services[1]+"-key.yml")
			if err := os.Remove(one); err != nil {
				t.Fatal(err)
			}
			if err := keys.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(one); err != nil {
				t.Error("a file that was lost is not made again: ", err)
			}
			if len(p.Traits.KeyFiles) > 0 && content(t, p, "/var/lib/xivo-auth-keys/"+c.services[1]+"-key.yml") != other {
				t.Error("a random key that was there is another now")
			}
		})
	}
}

// detected is a server of a version, as it tells it.
func detected(t *testing.T, version string) *platform.Platform {
	t.Helper()
	p, err := platform.Detect(root(t, map[string]string{platform.VersionFile: version}).Root)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCertificate(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give the key to a group")
	}
	p := root(t, map[string]string{"/etc/group": "root:x:0:\nwww-data:x:33:consul\n", "/etc/hostname": "xivo-b\n"})
	converge(t, identity.Certificate(p))

	key, cert := p.Path(platform.CertificateKey), p.Path(platform.CertificateFile)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	for _, name := range []string{"localhost", "xivo-b", "127.0.0.1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("verified against itself as %s: %v", name, err)
		}
	}
	if leaf.Subject.CommonName != "*" || time.Until(leaf.NotAfter) < 3650*24*time.Hour {
		t.Errorf("CN=%s until %s", leaf.Subject.CommonName, leaf.NotAfter)
	}
	for name, want := range map[string]os.FileMode{key: 0o640, cert: 0o644} {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if gid := st.Sys().(*syscall.Stat_t).Gid; st.Mode().Perm() != want || gid != 33 {
			t.Errorf("%s has mode %v and group %d, want %v and www-data", name, st.Mode().Perm(), gid, want)
		}
	}

	t.Run("a pair that is there stays", func(t *testing.T) {
		before := content(t, p, platform.CertificateFile)
		if err := identity.Certificate(p).Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if content(t, p, platform.CertificateFile) != before {
			t.Error("it was replaced")
		}
	})
	t.Run("half a pair is made anew", func(t *testing.T) {
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
		converge(t, identity.Certificate(p))
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			t.Error(err)
		}
	})
}
