package converge

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// What the daemons of each release read of the other nodes, where they read it,
// after the steps that write it have run. The columns are those of
// docs/xivo/directory.md, The schema by era;
// what they read of this node alone is tested where it becomes.
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
		rights      string // of the account; "" where there are none
		link        string // of a definition to its directory
		checkURL    bool
		listens     bool // xivo-ctid, for its peers
		credentials bool // of the peers, for xivo-ctid-ng
	}{
		{"15.19", "15.20", "", byURI, true, true, false},
		{"15.20", "15.20", "", byURI, true, true, false},
		{"16.01", "16.03", contacts, byURI, false, true, false},
		{"16.03", "16.03", contacts, byURI, false, true, false},
		{"16.12", "16.12", contacts, byURI, false, true, false},
		{"16.13", "16.13", contacts, byID, false, true, false},
		{"16.16", "16.16", presences, byID, false, true, true},
		{"17.17", "17.17", presences, byID, false, false, true},
		{"18.03", "17.17", presences, byID, false, false, true},
	} {
		t.Run(v.version, func(t *testing.T) {
			db := nodetest.Connect(t, server.Database(t, dsn, schema.SQL(v.schema)))
			n := nodetest.Server(t, v.version, db)
			if err := n.CheckSchema(t.Context()); err != nil {
				t.Fatal(err)
			}
			steps := []string{"web-service", "directories", "dird", "ctid-config", "ctid-ng"}
			p := databasePass(t, n, new(Memory), peer(v.version))
			for _, name := range steps {
				if first := runs(t, p, name); (first.Changes == nil) != (name == "ctid-ng" && !v.credentials) {
					t.Errorf("%s, the first time: %v, %s", name, first.Changes, first.Skipped)
				}
				if again := runs(t, p, name); again.Changes != nil {
					t.Errorf("%s, a second time: %v", name, again.Changes)
				}
			}
			p = databasePass(t, n, new(Memory), peer(v.version))
			for _, name := range steps {
				if again := runs(t, p, name); again.Changes != nil {
					t.Errorf("%s, in the next pass: %v", name, again.Changes)
				}
			}

			// xivo-confd: the password of the enabled row with that login.
			account := n.Credentials().Account()
			if got := nodetest.Ask[string](t, db, "SELECT string_agg(passwd, ' ') FROM accesswebservice WHERE login = $1 AND disable = 0 AND host IS NULL", account); got != n.Credentials().DirectoryPassword().Reveal() {
				t.Error("the account has another password, or is there twice")
			}
			if v.rights != "" {
				if got := nodetest.Ask[string](t, db, "SELECT acl::text FROM accesswebservice WHERE login = $1", account); got != v.rights {
					t.Errorf("the account has the rights %s", got)
				}
			}

			// xivo-confgen: definitions joined with their directories, for xivo-dird.
			const source = `SELECT string_agg(c.name || ' ' || d.uri || ' ' || d.xivo_username, ' ') FROM ctidirectories c JOIN directories d ON `
			want := directory.Name(uuid.MustParse(nodetest.PeerUUID)) + " https://10.0.0.1:9486 " + account
			if got := nodetest.Ask[string](t, db, source+v.link+" WHERE d.dirtype = 'xivo' AND d.xivo_password <> ''"); got != want {
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
				wantNG["remote_credentials"] = map[string]any{directory.Name(uuid.MustParse(nodetest.PeerUUID)): map[string]any{
					"xivo_uuid": nodetest.PeerUUID, "service_id": account, "service_key": n.Credentials().DirectoryPassword().Reveal(),
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
			if diff := cmp.Diff(wantRestarts, n.Platform.Init.(*nodetest.Manager).Restarted); diff != "" {
				t.Errorf("restarted (-want +got):\n%s", diff)
			}
		})
	}
}

// What another machine calls itself comes over the network, printable and of 64
// characters at most, and goes into rows of the database, files of daemons, names of the
// broker and onto the terminal.
func TestHostNamesOfOtherMachinesAreOnlyText(t *testing.T) {
	hosts := map[string]string{
		"accents":                  "xivo-élève-日本",
		"spaces":                   "  my  xivo ",
		"quotes":                   `o'brien "the" xivo`,
		"a comma":                  "a,b",
		"an equals sign":           "uuid=11111111-2222-4333-8444-555555555555",
		"SQL":                      "'); DROP TABLE infos; --",
		"shell":                    "$(reboot)`reboot`",
		"a format":                 "{firstname} %s %d",
		"YAML":                     "x: {y: [1]}\n- z",
		"64 accents":               strings.Repeat("é", 64),
		"equal to another's slug":  "my-xivo",
		"equal to another's slug,": "my_xivo",
	}
	for version, era := range map[string]string{"16.03": "16.03", "16.16": "16.16"} {
		t.Run(version, func(t *testing.T) {
			db := nodetest.Connect(t, server.Postgres(t, schema.SQL(era)))
			n := nodetest.Server(t, version, db)
			consulName := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
			var members []mesh.Member
			for _, host := range hosts {
				m := n.MemberOf(overlay.Member{UUID: uuid.New(), Host: host, Address: netip.AddrFrom4([4]byte{10, 0, 1, byte(len(members))}), Version: version})
				if !consulName.MatchString(m.Name) {
					t.Errorf("%q is no name for Consul and the broker", m.Name)
				}
				m.Seen = time.Now()
				members = append(members, m)
			}

			p := databasePass(t, n, new(Memory), members...)
			runs(t, p, "directories")
			if e := runs(t, p, "ctid-ng"); (e.Skipped == "") != (version == "16.16") {
				t.Errorf("ctid-ng is skipped: %q", e.Skipped)
			}
			var names, upstreams []string
			for _, m := range p.Decision.Members {
				names, upstreams = append(names, m.Name), append(upstreams, upstreamName(m))
			}
			slices.Sort(names)
			if len(slices.Compact(names)) != len(hosts) {
				t.Errorf("two have one name: %q", names)
			}
			got := strings.Split(nodetest.Ask[string](t, db, "SELECT directories FROM cticontexts WHERE name = 'default'"), ",")
			got = slices.DeleteFunc(got, func(s string) bool { return !directory.OfMesh(s) })
			slices.Sort(got)
			slices.Sort(upstreams)
			if !slices.Equal(got, upstreams) {
				t.Errorf("the context lists %q, want each once: %q", got, upstreams)
			}
			if rows := nodetest.Ask[int](t, db, "SELECT count(*) FROM directories WHERE name LIKE 'xivomesh%'"); rows != len(hosts) {
				t.Errorf("%d directories for %d peers", rows, len(hosts))
			}
		})
	}
}

func TestAFileOfSomebodyElseThatWinsIsNoSuccess(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	// It is not asked.
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return new(consul.Client), nil }
	dir := n.Platform.Path(platform.CtidConfigDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "00-site.yml"), []byte("service_discovery:\n  advertise_address: 10.9.9.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := &Pass{Node: n, View: &View{Self: n.Self(), Document: n.Config()}, memory: new(Memory)}
	_, err := p.runner().Run(t.Context(), nodetest.Only(t, Phase, "ctid"))
	if err == nil || !strings.Contains(err.Error(), "00-site.yml") || !strings.Contains(err.Error(), "remove the key there") {
		t.Fatalf("error %v, want one that names the file and what to do", err)
	}
	if said := p.conclude(Status{}, err).Errors; len(said) != 1 || !strings.Contains(said[0], "00-site.yml") {
		t.Errorf("the status says %q", said)
	}
}

// Nobody is asked: no server answers here, and a step that asked one would fail.
func TestALaterVersionSharesNothing(t *testing.T) {
	n := nodetest.Server(t, "18.04", nil)
	p := databasePass(t, n, new(Memory), peer("18.04"))
	if len(p.Decision.Members) != 1 {
		t.Fatalf("the node knows %v", p.Decision.Members)
	}
	for _, name := range []string{"web-service", "wan", "members", "upstreams", "directories", "dird", "ctid-ng", "ctid", "presences"} {
		if e := runs(t, p, name); !strings.Contains(string(e.Skipped), "18.04 shares contacts and statuses in another way") || e.Changes != nil {
			t.Errorf("%s: skipped %q, changed %v; want it skipped for its version", name, e.Skipped, e.Changes)
		}
	}
	// The canary is no step: members are listened for beside them.
	if heard, err := p.Heard(t.Context()); heard != nil || err != nil || p.memory.canary != nil {
		t.Errorf("the canary: %v, %v; want nobody asked", heard, err)
	}
	if level, says := p.checkCanary(t.Context(), n); level != Skipped || !strings.Contains(says, "18.04") {
		t.Errorf("the canary is told as %s, %s", level, says)
	}

	p = databasePass(t, n, new(Memory))
	if s := p.conclude(Status{}, nil); s.State != Alone {
		t.Errorf("without peers: %s, %s", s.State, s.Why)
	}
	p.View.Peers.Addresses = []string{"10.0.0.1"}
	if s := p.conclude(Status{}, nil); s.State != Waiting || !strings.Contains(s.Why, "18.04") {
		t.Errorf("with peers: %s, %s", s.State, s.Why)
	}
}
