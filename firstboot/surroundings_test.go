package firstboot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// runs applies a step of converge, and fails if it is not then as wanted.
func runs(t *testing.T, n *Node, name string) []string {
	t.Helper()
	diff, err := step(t, ConvergePhase, name).run(t.Context(), n, name)
	if err != nil {
		t.Fatal(err)
	}
	return diff
}

// What another machine calls itself comes over the network, and goes into tags
// of Consul, rows of the database, files of daemons, names of the broker and
// onto the terminal.
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
		"200 characters":           strings.Repeat("x", 200),
		"200 accents":              strings.Repeat("é", 200),
		"what a terminal obeys":    "line\r\nbreak\x00\x1b[2J\x07",
		"bytes that are no text":   "\xff\xfe",
		"nothing":                  "",
		"equal to another's slug":  "my-xivo",
		"equal to another's slug,": "my_xivo",
	}
	for version, era := range map[string]string{"16.03": "16.03", "16.16": "16.16"} {
		t.Run(version, func(t *testing.T) {
			n := aNode(t, version, open(t, server.Postgres(t, schema.SQL(era))))
			consulName := regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
			for name, host := range hosts {
				t.Run(name, func(t *testing.T) {
					id := uuid.New()
					// As it travels: Consul hands tags on as JSON.
					raw, err := json.Marshal(mesh.Member{UUID: id, Host: host, Version: version, KeyID: "0a1b2c"}.Tags())
					if err != nil {
						t.Fatal(err)
					}
					var tags []string
					if err := json.Unmarshal(raw, &tags); err != nil {
						t.Fatal(err)
					}
					node := identity.NodeName(host, id)
					m, err := mesh.ParseMember(node, fmt.Sprintf("10.0.1.%d", len(n.members)), tags)
					if err != nil {
						t.Fatal(err)
					}
					if m.UUID != id || m.Version != version || m.KeyID != "0a1b2c" {
						t.Errorf("its name changed what it is: %+v", m)
					}
					if !consulName.MatchString(node) {
						t.Errorf("%q is no name for Consul and the broker", node)
					}
					if len([]rune(m.Host)) > 64 || strings.ContainsFunc(m.Host, func(r rune) bool { return !unicode.IsPrint(r) }) {
						t.Errorf("%q is not for a terminal", m.Host)
					}
					m.Seen = time.Now()
					n.members = append(n.members, m)
				})
			}

			runs(t, n, "directories")
			if version == "16.16" {
				runs(t, n, "ctid-ng")
			}
			var names, upstreams []string
			for _, m := range n.members {
				names, upstreams = append(names, m.Name), append(upstreams, upstreamName(m))
			}
			slices.Sort(names)
			if len(slices.Compact(names)) != len(hosts) {
				t.Errorf("two have one name: %q", names)
			}
			got := strings.Split(ask[string](t, n.db, "SELECT directories FROM cticontexts WHERE name = 'default'"), ",")
			got = slices.DeleteFunc(got, func(s string) bool { return !directory.Ours(s) })
			slices.Sort(got)
			slices.Sort(upstreams)
			if !slices.Equal(got, upstreams) {
				t.Errorf("the context lists %q, want each once: %q", got, upstreams)
			}
			if rows := ask[int](t, n.db, "SELECT count(*) FROM directories WHERE name LIKE 'xivomesh%'"); rows != len(hosts) {
				t.Errorf("%d directories for %d peers", rows, len(hosts))
			}
		})
	}
}

func TestNotices(t *testing.T) {
	n := aNode(t, "16.03", open(t, server.Postgres(t, schema.SQL("16.03"))))
	n.members = []mesh.Member{{UUID: uuid.MustParse(peerUUID), Host: "xivo-a", Name: "xivo-a-607796fc", Address: "10.0.0.1", Version: "16.03"}}
	n.Journal.Identity.Advertise = "127.0.0.1" // this machine has it
	// No name server answers any more.
	resolver := net.DefaultResolver
	defer func() { net.DefaultResolver = resolver }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("silence") }}
	n.names = map[string][]netip.Addr{"a.invalid": {netip.MustParseAddr("10.0.0.1")}, "c.invalid": {netip.MustParseAddr("10.0.0.3")}}
	run := func(sql string) {
		t.Helper()
		if _, err := n.db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, sql, want string }{
		{"nothing to say", "SELECT 1", ""},
		{"a directory made by hand for a machine that is no peer", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://c.invalid:9486', 'xivo', 'sitec', '')`, ""},
		{"a directory made by hand for a peer, by its name", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://A.invalid:9486', 'xivo', 'named', '')`, "the directory named was made by hand for a.invalid"},
		{"a directory made by hand for a peer", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://10.0.0.1:9486', 'xivo', 'sitea', '')`, "the directory sitea was made by hand for 10.0.0.1"},
		{"XiVO holds another machine's address", `INSERT INTO netiface (ifname, address, options) VALUES ('eth0', '192.0.2.7', '')`, "eth0 holds 192.0.2.7"},
		{"context separation is on", `UPDATE ctimain SET context_separation = 1`, "context separation is on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			run(c.sql)
			n.reset()
			runs(t, n, "directories")
			if diff := runs(t, n, "notices"); diff != nil {
				t.Errorf("it changed %q", diff)
			}
			got := strings.Join(n.conclude(Status{}, nil).Notices, "\n")
			if !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("notices:\n%s\nwant %q", got, c.want)
			}
			byHand := strings.Contains(got, "made by hand")
			if ours := ask[int](t, n.db, "SELECT count(*) FROM directories WHERE name LIKE 'xivomesh%'"); byHand && ours > 0 || !byHand && ours != 1 {
				t.Errorf("%d sources of ours for the peer", ours)
			}
			if fmt.Sprint(n.Notices()) != fmt.Sprint(n.conclude(Status{}, nil).Notices) {
				t.Error("plan and status tell different things")
			}
		})
	}
}

func TestAFileOfSomebodyElseThatWinsIsNoSuccess(t *testing.T) {
	n := aNode(t, "16.03", nil)
	n.consul = new(consul.Client) // it is not asked
	dir := n.Platform.Path(platform.CtidConfigDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "00-site.yml"), []byte("service_discovery:\n  advertise_address: 10.9.9.9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := step(t, ConvergePhase, "ctid").run(t.Context(), n, "ctid")
	if err == nil || !strings.Contains(err.Error(), "00-site.yml") || !strings.Contains(err.Error(), "remove the key there") {
		t.Fatalf("error %v, want one that names the file and what to do", err)
	}
	if said := n.conclude(Status{}, []error{err}).Errors; len(said) != 1 || !strings.Contains(said[0], "00-site.yml") {
		t.Errorf("the status says %q", said)
	}
}

// A first boot that cannot begin well does not begin.
func TestNothingIsHalfDone(t *testing.T) {
	dsn := server.Postgres(t, schema.SQL("16.03"))
	reachable := cloudinit.Advertise{}
	for _, c := range []struct {
		name, identity, infos string
		advertise             cloudinit.Advertise
		says                  string
	}{
		{"an own address on no interface", cloudinit.IdentityRegenerate, "", cloudinit.Advertise{Address: "203.0.113.9"}, "203.0.113.9 is not an address of this machine"},
		{"an interface that is not there", cloudinit.IdentityRegenerate, "", cloudinit.Advertise{Interface: "nosuch0"}, "interface nosuch0 has no IPv4 address"},
		{"no UUID to keep", cloudinit.IdentityKeep, "DELETE FROM infos", reachable, "table infos has 0 rows"},
		{"two UUIDs to keep", cloudinit.IdentityKeep, "INSERT INTO infos VALUES ('" + oldUUID + "'), ('" + peerUUID + "')", reachable, "table infos has 2 rows"},
		{"two UUIDs to replace", cloudinit.IdentityRegenerate, "DELETE FROM infos; INSERT INTO infos VALUES ('" + oldUUID + "'), ('" + peerUUID + "')", reachable, "table infos has 2 rows"},
		{"a UUID that is none", cloudinit.IdentityKeep, "DELETE FROM infos; INSERT INTO infos VALUES ('xivo')", reachable, `infos.uuid is "xivo"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := aNode(t, "16.03", open(t, dsn))
			n.Journal, n.Config.Identity, n.Config.Advertise = nil, c.identity, c.advertise
			for sql := range strings.SplitSeq(c.infos, ";") {
				if _, err := n.db.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
			}
			_, _, err := n.Begin(t.Context(), false)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v, want %q", err, c.says)
			}
			if left, err := os.ReadDir(n.Platform.Path(platform.StateDir)); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
			if got := contents(t, n, profileFile); !strings.Contains(got, oldUUID) {
				t.Errorf("the UUID of the daemons is %s", got)
			}
		})
	}
}
