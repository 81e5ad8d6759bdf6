package e2e

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

var versions = flag.String("versions", "15.20,16.16", "the XiVO versions of TestVersions")

// TestVersions goes from a XiVO of another version to a mesh of two clones of
// it. That of 16.03 is TestMesh. PostgreSQL, RabbitMQ and Consul are the same in
// all: what XiVO and its daemons did differently is what is tried here.
func TestVersions(t *testing.T) {
	needsLab(t)
	t.Parallel()
	for _, version := range strings.Split(*versions, ",") {
		t.Run(version, func(t *testing.T) { clonesJoin(t, version) })
	}
}

func clonesJoin(t *testing.T, version string) {
	debian, layers := xivo(t, version, "")
	m, err := scenario.New(t.Context(), debian, layers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLab(t, m.Lab) })
	c := &clones{version: version, mesh: m, nodes: make([]*scenario.Node, 2), uuids: make([]string, 2)}
	inOrder(t, []part{
		{"it is sealed", c.seal},
		{"two clones of it become two nodes of one mesh", c.join},
		{"nothing of the original's identity is left", c.nothingLeft},
		{"what is missing of the other is planned as a pass then does it", c.plannedAsDone},
		{"each finds the other's user, and sees his status change", c.findAndSee},
		{"each can look the other up in Consul as its xivo-ctid does", c.lookUp},
		{"each one's xivo-ctid-ng has what the other lets it read statuses with", c.accountsOfCtidNG},
		{"a second pass finds nothing to do, and does nothing", c.secondPass},
	})
}

// clones is what the parts of clonesJoin hand on to each other.
type clones struct {
	version string
	mesh    *scenario.Mesh
	golden  *lab.Machine
	old     map[string]string // what the original had for itself, by where
	nodes   []*scenario.Node  // the two
	uuids   []string
}

func (c *clones) seal(t *testing.T) {
	var err error
	if c.golden, err = c.mesh.Lab.Start(t.Context(), lab.Node{Name: "xivo", Address: scenario.Address(9)}); err != nil {
		t.Fatal(err)
	}
	if err := c.golden.WaitRunning(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	c.old = secretsOf(t, c.golden)
	if out, err := c.golden.Run(t.Context(), "xivo-firstboot", "seal"); err == nil {
		t.Fatalf("it passed its wizard, and was sealed without --allow-configured:\n%s", out)
	}
	if err := seals(t.Context(), c.golden); err != nil {
		t.Fatal(err)
	}
	if err := c.golden.Poweroff(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
}

func (c *clones) join(t *testing.T) {
	var err error
	for n := range c.nodes {
		if c.nodes[n], err = c.mesh.BootCopy(t.Context(), n+1, &scenario.Node{Machine: c.golden}); err != nil {
			t.Fatal(err)
		}
	}
	for n, node := range c.nodes {
		s, err := node.WaitJoined(deadline(t, lab.Hang), 1, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		if c.version < "16.07" {
			storedIsThere(t, node)
		}
		if s.Version != c.version {
			t.Errorf("%s says that it is XiVO %s", node.Name, s.Version)
		}
		if err := node.WaitRunning(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
		if c.uuids[n], err = node.UUID(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func (c *clones) nothingLeft(t *testing.T) {
	seen := map[string]string{}
	for n, node := range c.nodes {
		all := identities(t, node, c.version, c.uuids[n])
		for place, secret := range secretsOf(t, node.Machine) {
			all[place] = secret
		}
		for place, identity := range all {
			if other, taken := seen[place+identity]; taken && !shared[place] {
				t.Errorf("%s and %s have one %s: %s", other, node.Name, place, identity)
			}
			seen[place+identity] = node.Name
		}
		for place, identity := range c.old {
			if where := holders(t, node, identity); where != "" {
				t.Errorf("%s still has the original's %s:\n%s", node.Name, place, where)
			}
		}
	}
}

func (c *clones) plannedAsDone(t *testing.T) {
	node := subject{c.nodes[0], t}
	node.run(t, `systemctl stop xivo-mesh
iptables -F XIVO-MESH-IN
curl -sf -u guest:guest -X DELETE http://127.0.0.1:15672/api/parameters/federation-upstream/%2F/xivomesh`+strings.ReplaceAll(c.uuids[1], "-", "")[:12]+`
PGPASSWORD=proformatique psql -q -h localhost -U asterisk -c "DELETE FROM directories WHERE name LIKE 'xivomesh%'" asterisk`)
	plan := node.run(t, "xivo-firstboot plan")
	for _, step := range []string{"firewall", "upstreams", "directories", "dird"} {
		if !strings.Contains(plan, "converge."+step+": ") {
			t.Errorf("%s is not planned", step)
		}
	}
	asPlanned(t, "converge", plan, node.run(t, "xivo-firstboot converge 2>&1; systemctl start xivo-mesh"))
}

func (c *clones) findAndSee(t *testing.T) {
	users := make([]scenario.User, 2)
	clients := make([]*scenario.Client, 2)
	var err error
	for n, node := range c.nodes {
		if users[n], err = node.AddUser(t.Context(), fmt.Sprint("User", n)); err != nil {
			t.Fatal(err)
		}
		if clients[n], err = node.Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for n, node := range c.nodes {
		peer := 1 - n
		if err := node.Finds(deadline(t, lab.Hang), users[peer], c.uuids[peer]); err != nil {
			t.Error(err)
		}
		if err := clients[n].Watch(c.uuids[peer], users[peer].ID); err != nil {
			t.Fatal(err)
		}
		// Nobody has set it yet: it has to be fetched from the other node, from
		// 17.16 on by xivo-ctid-ng, which has no stand-in.
		if c.version < "17.16" {
			if err := clients[n].Learns(deadline(t, lab.Hang), c.uuids[peer], users[peer].ID); err != nil {
				t.Error(err)
			}
		}
		for _, status := range []string{"available", "away"} {
			if err := clients[peer].SetStatus(users[peer].ID, status); err != nil {
				t.Fatal(err)
			}
			if err := clients[n].Sees(deadline(t, lab.Hang), c.uuids[peer], users[peer].ID, status); err != nil {
				t.Error(err)
			}
		}
	}
}

func (c *clones) lookUp(t *testing.T) {
	// Without a token, as xivo-ctid asks, whatever its configuration holds.
	question := `curl -ksSf "https://localhost:8500/v1/catalog/service/xivo-ctid?dc=$1"`
	if c.version >= "16.15" { // from then on only those whose check passes
		question = `curl -ksSf "https://localhost:8500/v1/health/service/xivo-ctid?passing&dc=$1"`
	}
	for n, node := range c.nodes {
		dc, err := c.nodes[1-n].Run(t.Context(), "sed", "-n", `s/^ *"datacenter": "\(.*\)",$/\1/p`, "/etc/consul/xivo/interconnection.json")
		if err != nil {
			t.Fatal(err)
		}
		out, err := node.Run(t.Context(), "sh", "-ec", question, "question", strings.TrimSpace(dc))
		if err != nil {
			t.Fatal(err)
		}
		address, err := c.nodes[1-n].MeshAddress(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out, c.uuids[1-n]) || !strings.Contains(out, `"`+address+`"`) {
			t.Errorf("%s finds %s", node.Name, out)
		}
		if c.version != "15.20" {
			continue
		}
		// Up to 15.20 Consul asks xivo-ctid at check_url whether it lives.
		out, err = node.Run(t.Context(), "sh", "-ec",
			`curl -sSf "$(sed -n 's/^  check_url: "\(.*\)"$/\1/p' /etc/xivo-ctid/conf.d/interconnection.yml)"`)
		if err != nil || !strings.Contains(out, c.uuids[n]) {
			t.Errorf("%s: xivo-ctid's check: %v: %s", node.Name, err, out)
		}
	}
}

func (c *clones) accountsOfCtidNG(t *testing.T) {
	for n, node := range c.nodes {
		peer := c.nodes[1-n]
		account, err := node.Run(t.Context(), "awk", "-v", "uuid="+c.uuids[1-n],
			`index($0, uuid) { found = 1 } found && /service_(id|key):/ { gsub(/"/, "", $2); print $2 }`, "/etc/xivo-ctid-ng/conf.d/interconnection.yml")
		if c.version < "16.15" {
			if err == nil {
				t.Errorf("%s: before 16.15 there is nothing to tell it, and it is told %q", node.Name, account)
			}
			continue
		}
		if err != nil || len(strings.Fields(account)) != 2 {
			t.Fatalf("%s: it has no credentials for %s: %v: %q", node.Name, c.uuids[1-n], err, account)
		}
		login, key := strings.Fields(account)[0], strings.Fields(account)[1]
		acl, err := peer.SQL(t.Context(), `SELECT acl FROM accesswebservice WHERE login = :'a1' AND passwd = :'a2' AND disable = 0`, login, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, right := range []string{"confd.users.read", "ctid-ng.users.*.presences.read", "ctid-ng.lines.*.presences.read"} {
			if !strings.Contains(acl, right) {
				t.Errorf("%s lets the account of %s do %q, want %s among it", peer.Name, node.Name, acl, right)
			}
		}
	}
}

func (c *clones) secondPass(t *testing.T) {
	for _, node := range c.nodes {
		before := picture(t, node)
		if out, err := node.Run(t.Context(), "xivo-firstboot", "plan"); err != nil || !strings.HasPrefix(out, "nothing to change\n") {
			t.Errorf("%s: the plan: %v\n%s", node.Name, err, out)
		}
		for _, again := range []string{"converge", "run"} {
			if out, err := node.Run(t.Context(), "xivo-firstboot", again); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		}
		if diff := cmp.Diff(before, picture(t, node)); diff != "" {
			t.Errorf("%s (-before +after):\n%s", node.Name, diff)
		}
	}
}

// shared is what the nodes of a mesh have in common, and no other machine has.
var shared = map[string]bool{"Consul master token": true}

// secretsOf returns what a clone must not have of its original, by what it is.
func secretsOf(t *testing.T, m *lab.Machine) map[string]string {
	t.Helper()
	all := map[string]string{}
	for what, script := range map[string]string{
		"XiVO UUID":           `PGPASSWORD=proformatique psql -Atqh localhost -U asterisk -c 'SELECT uuid FROM infos' asterisk`,
		"Consul master token": `cat /var/lib/consul/master_token`,
		"Consul node id":      `cat /var/lib/consul/node-id`,
		"machine id":          `cat /etc/machine-id`,
		"Erlang cookie":       `cat /var/lib/rabbitmq/.erlang.cookie`,
		"TLS key":             `sed -n 2p /usr/share/xivo-certs/server.key`,
		"SSH host key":        `cut -d ' ' -f 2 /etc/ssh/ssh_host_ed25519_key.pub`,
		"key of xivo-agid":    `sed -n 's/^service_key: //p' /var/lib/xivo-auth-keys/xivo-agid-key.yml`,
		"key of xivo-ctid":    `sed -n 's/^service_key: //p' /var/lib/xivo-auth-keys/xivo-ctid-key.yml`,
	} {
		out, err := m.Run(t.Context(), "sh", "-ec", script)
		if err != nil || strings.TrimSpace(out) == "" {
			t.Errorf("%s has no %s: %v", m.Name, what, err)
			continue
		}
		all[what] = strings.TrimSpace(out)
	}
	return all
}

// holders tells where on a machine a text is: in a file, in a row that can be
// read, or in the environment of a process. What PostgreSQL has not overwritten
// yet in its own files counts for nothing, and the seal's manifest tells what was
// taken out.
func holders(t *testing.T, n *scenario.Node, text string) string {
	t.Helper()
	out, err := n.Run(t.Context(), "sh", "-c", `
find /etc /home /opt /root /srv /usr/local /usr/share/xivo* /var -xdev -type f -not -path '/var/lib/postgresql/*' -not -path /var/lib/xivo-firstboot/seal.json -exec grep -laF -e "$1" {} +
PGPASSWORD=proformatique pg_dump --host=localhost --username=asterisk asterisk | grep -aF -e "$1"
grep -laF -e "XIVO_UUID=$1" /proc/[0-9]*/environ
true`, "holders", text)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// seals makes an image of a machine, but for switching it off.
func seals(ctx context.Context, m *lab.Machine) error {
	for _, argv := range [][]string{
		// The lab's seed is mounted where cloud-init's state is.
		{"umount", "/var/lib/cloud/seed/nocloud"},
		{"xivo-firstboot", "seal", "--allow-configured"},
		{"xivo-firstboot", "seal", "--last"},
	} {
		if _, err := m.Run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}
