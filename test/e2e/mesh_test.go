// Package e2e proves on real machines what an end user gets: contacts and live
// statuses of every node on every node, and that it stays so.
package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// takeIn is what is promised: nodes that are there take a newcomer in that fast
// once its services are up.
const takeIn = 15 * time.Second

// TestMesh goes through the demo's story, looks closer on the way, and goes on
// with the life of that mesh. Each part builds on the ones before, so the first
// that fails ends it.
func TestMesh(t *testing.T) {
	needsLab(t) // and measures, alone
	m := life{scenario.NewStory(func(context.Context) (*scenario.Mesh, error) { return newMesh(t), nil })}
	t.Cleanup(m.Close)
	inOrder(t, append(m.story(), []part{
		{"every node is somebody of its own, in every place", m.ownIdentities},
		{"what users had stored is there, and nobody is logged in by a session of the original", m.storedIsThere},
		{"owners and modes are what XiVO's packages made them", m.owners},
		{"a search on every node finds the users of every other", m.people},
		{"statuses go from every node to every other, live", func(t *testing.T) { m.statuses(t, "away") }},
		{"nobody who was logged in was dropped", m.nobodyDropped},
		{"another converge changes nothing and restarts nothing", m.convergeAgain},
		{"a reboot keeps the identity, and the node rejoins", m.reboot},
		{"the clone of a node that had joined becomes another, and both live", m.cloneOfANode},
		{"the secret shows nowhere", m.secretNowhere},
	}...))
}

// life is that of the mesh of TestMesh.
type life struct{ *scenario.Story }

// story are the demo's steps, and what is looked at besides after some of them.
func (m life) story() []part {
	var early string // the UUID of node 3, as soon as it has one
	closer := map[string]func(*testing.T){
		scenario.People: func(t *testing.T) {
			for _, n := range []int{1, 2} {
				if err := m.Nodes[n].WaitRunning(deadline(t, lab.Hang)); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.Connect(t.Context(), 2); err != nil {
				t.Fatal(err)
			}
		},
		scenario.ThirdBoots: func(t *testing.T) {
			// Somebody asks for the newcomer's first user too early: xivo-ctid finds
			// nobody, and remembers that.
			early = newUUID(t, m.Nodes[3])
			if err := m.Clients[1].Watch(early, 1); err != nil {
				t.Fatal(err)
			}
		},
		scenario.ThirdJoined: func(t *testing.T) {
			for _, n := range []int{1, 2} {
				if took := m.TakenIn[n]; took > takeIn {
					t.Errorf("node %d took node 3 in after %s, want %s at most", n, took, takeIn)
				}
			}
			if err := m.Nodes[3].WaitRunning(deadline(t, lab.Hang)); err != nil {
				t.Fatal(err)
			}
			// That user's status never changes, so it has to be fetched.
			if err := m.Clients[1].Learns(deadline(t, lab.Hang), early, 1); err != nil {
				t.Error(err)
			}
		},
	}
	var parts []part
	for _, step := range m.Steps() {
		parts = append(parts, part{step.Name, func(t *testing.T) {
			if err := step.Do(t.Context()); err != nil {
				t.Fatal(err)
			}
			if look := closer[step.Name]; look != nil {
				look(t)
			}
		}})
	}
	return parts
}

func (m life) everyPair(f func(from, to int)) {
	for from := range m.Nodes {
		for to := range m.Nodes {
			if from != to {
				f(from, to)
			}
		}
	}
}

// people checks that a search on every node finds the users of every other.
func (m life) people(t *testing.T) {
	m.everyPair(func(of, on int) {
		if err := m.Finds(t.Context(), on, of); err != nil {
			t.Error(err)
		}
	})
}

// statuses checks that a status goes from every node to every other.
func (m life) statuses(t *testing.T, status string) {
	m.everyPair(func(from, to int) {
		err := errors.Join(
			m.Clients[to].Watch(m.UUIDs[from], m.Users[from].ID),
			m.Clients[from].SetStatus(m.Users[from].ID, fmt.Sprint(status, from, to)),
			m.Clients[to].Sees(deadline(t, lab.Hang), m.UUIDs[from], m.Users[from].ID, fmt.Sprint(status, from, to)))
		if err != nil {
			t.Error(err)
		}
	})
}

func (m life) ownIdentities(t *testing.T) {
	seen := map[string]int{}
	for n, node := range m.Nodes {
		for place, identity := range identities(t, node, recipe.Version, m.UUIDs[n]) {
			if other, taken := seen[place+identity]; taken {
				t.Errorf("nodes %d and %d have one %s: %s", other, n, place, identity)
			}
			seen[place+identity] = n
		}
	}
}

func (m life) storedIsThere(t *testing.T) {
	for _, node := range m.Nodes {
		storedIsThere(t, node)
	}
}

func (m life) owners(t *testing.T) {
	want := `600 consul:consul /etc/consul/xivo/config.json
600 consul:consul /etc/consul/xivo/interconnection.json
600 consul:consul /var/lib/consul/master_token
640 consul:www-data /var/lib/consul/default_xivo_consul_token.yml
640 root:www-data /usr/share/xivo-certs/server.key
644 root:www-data /usr/share/xivo-certs/server.crt
400 rabbitmq:rabbitmq /var/lib/rabbitmq/.erlang.cookie
`
	for n, node := range m.Nodes {
		args := []string{"stat", "--format=%a %U:%G %n"}
		for line := range strings.Lines(want) {
			args = append(args, strings.Fields(line)[2])
		}
		got, err := node.Run(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("node %d (-want +got):\n%s", n, diff)
		}
	}
}

func (m life) nobodyDropped(t *testing.T) {
	for _, c := range m.Clients {
		if err := c.Connected(); err != nil {
			t.Error(err)
		}
	}
}

func (m life) convergeAgain(t *testing.T) {
	for n, node := range m.Nodes {
		before := picture(t, node)
		if out, err := node.Run(t.Context(), "xivo-firstboot", "converge"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if diff := cmp.Diff(before, picture(t, node)); diff != "" {
			t.Errorf("node %d (-before +after):\n%s", n, diff)
		}
	}
}

func (m life) reboot(t *testing.T) {
	m.Clients[2].Close()
	if err := m.Nodes[2].Poweroff(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	if err := m.Nodes[2].PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Nodes[2].WaitRunning(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	for n := range m.Nodes {
		if _, err := m.Nodes[n].WaitJoined(deadline(t, lab.Hang), 2, m.Nodes[2].Booted); err != nil {
			t.Fatal(err)
		}
	}
	uuid, err := m.Nodes[2].UUID(t.Context())
	if err != nil || uuid != m.UUIDs[2] {
		t.Fatalf("its UUID is %s (%v), it was %s", uuid, err, m.UUIDs[2])
	}
	identities(t, m.Nodes[2], recipe.Version, uuid)
	if m.Clients[2], err = m.Nodes[2].Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.people(t)
	m.statuses(t, "back")
}

func (m life) cloneOfANode(t *testing.T) {
	m.Clients[3].Close()
	if err := m.Nodes[3].Poweroff(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	var err error
	if m.Nodes[4], err = m.Mesh.BootCopy(t.Context(), 4, m.Nodes[3]); err != nil {
		t.Fatal(err)
	}
	if err := m.Nodes[4].WaitRunning(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	// It knows of node 3, which is off, and says so.
	waitStatus(t, m.Nodes[4], "that nodes 1 and 2 answer", func(s scenario.Status) bool {
		return s.State == "degraded" && s.Answered(m.UUIDs[1]) && s.Answered(m.UUIDs[2]) && strings.Contains(s.Why, "node3")
	})
	if err := m.Nodes[3].PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range m.Nodes {
		if _, err := m.Nodes[n].WaitJoined(deadline(t, lab.Hang), 3, m.Nodes[3].Booted); err != nil {
			t.Fatal(err)
		}
		if err := m.Nodes[n].WaitRunning(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
	}

	if m.UUIDs[4], err = m.Nodes[4].UUID(t.Context()); err != nil {
		t.Fatal(err)
	}
	original, copied := identities(t, m.Nodes[3], recipe.Version, m.UUIDs[3]), identities(t, m.Nodes[4], recipe.Version, m.UUIDs[4])
	// Debian's own, which only a seal takes out: to change it under a running
	// journald would hide this boot's journal.
	delete(original, "machine-id")
	for place, identity := range original {
		if copied[place] == identity {
			t.Errorf("the clone has the original's %s: %s", place, identity)
		}
	}
	for _, n := range []int{3, 4} {
		if m.Clients[n], err = m.Nodes[n].Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// The user came along in the copy; from here on they are two.
	m.Users[4] = m.Users[3]
	m.statuses(t, "away")
}

func (m life) secretNowhere(t *testing.T) {
	for n, node := range m.Nodes {
		out, err := node.Run(t.Context(), "sh", "-c",
			`journalctl --boot --no-pager; ps axww -o args; find /etc /var /usr/local /run /tmp -xdev -type f -perm /o=r -exec cat {} + 2>/dev/null`)
		if err != nil && lab.ExitCode(err) != 1 { // a file may go while it is read
			t.Fatal(err)
		}
		if strings.Contains(out, m.Mesh.Secret) {
			t.Errorf("node %d shows the secret in its journal, its processes or a file that anybody may read", n)
		}
	}
}

// part is a piece of a test that builds on the pieces before it.
type part struct {
	name string
	do   func(*testing.T)
}

// inOrder goes through the parts of a test, up to the first that fails.
func inOrder(t *testing.T, parts []part) {
	t.Helper()
	for _, p := range parts {
		if !t.Run(p.name, p.do) {
			t.FailNow()
		}
	}
}

// needsLab skips a test on machines where there is none. Such tests mostly wait,
// for boots and for daemons: two run at a time, but for the one that measures.
func needsLab(t *testing.T) {
	t.Helper()
	if os.Getenv("XIVO_LAB") == "" {
		t.Skip("boots machines: run make test")
	}
}

// newMesh bakes the image if it has to.
func newMesh(t *testing.T) *scenario.Mesh {
	maker, err := recipe.New(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	image, err := maker.Baked(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m, err := scenario.New(t.Context(), image.Raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLab(t, m.Lab) })
	return m
}

// closeLab saves the machines' logs when the test failed.
func closeLab(t *testing.T, l *lab.Lab) {
	if t.Failed() {
		dir, err := cache.Dir()
		logs := filepath.Join(dir, "test-failed", t.Name())
		err = errors.Join(err, os.RemoveAll(logs), l.SaveLogs(context.Background(), logs))
		t.Logf("the journals and consoles are in %s (%v)", logs, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// newUUID waits until a booting node has become, and returns its UUID.
func newUUID(t *testing.T, n *scenario.Node) string {
	t.Helper()
	var id string
	err := lab.Wait(deadline(t, lab.Hang), n.Name+" to have a UUID of its own", func(ctx context.Context) (bool, error) {
		var err error
		id, err = n.UUID(ctx)
		return err == nil && id != uuid.Nil.String(), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// identities returns what must differ between nodes, by where it is, and checks
// that the UUID is the same wherever a node of that version has it, and nowhere
// else.
func identities(t *testing.T, n *scenario.Node, version, uuid string) map[string]string {
	t.Helper()
	ask := func(script string) string {
		out, err := n.Run(t.Context(), "sh", "-ec", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	for place, script := range map[string]string{
		"/etc/profile.d/xivo_uuid.sh": `[ ! -e /etc/profile.d/xivo_uuid.sh ] || . /etc/profile.d/xivo_uuid.sh; echo "$XIVO_UUID"`,
		"/etc/default/xivo":           `sed -n 's/.*XIVO_UUID=//p' /etc/default/xivo | tail -n1`,
		"/etc/systemd/system.conf":    `sed -n 's/^DefaultEnvironment=.*XIVO_UUID=\([^" ]*\).*/\1/p' /etc/systemd/system.conf`,
		"the service manager":         `systemctl show-environment | sed -n 's/^XIVO_UUID=//p'`,
		"xivo-ctid's process":         `tr '\0' '\n' </proc/$(systemctl show --value --property=MainPID xivo-ctid)/environ | sed -n 's/^XIVO_UUID=//p'`,
	} {
		want := uuid
		if version == "15.20" { // XIVO_UUID came with 16.02
			want = ""
		}
		if got := ask(script); got != want {
			t.Errorf("%s: XIVO_UUID in %s is %q, want %q", n.Name, place, got, want)
		}
	}
	all := map[string]string{"UUID": uuid}
	for what, script := range map[string]string{
		"host name":           "hostname",
		"machine-id":          "cat /etc/machine-id",
		"SSH host key":        "cat /etc/ssh/ssh_host_ed25519_key.pub",
		"TLS certificate":     "sha256sum </usr/share/xivo-certs/server.crt",
		"Erlang cookie":       "sha256sum </var/lib/rabbitmq/.erlang.cookie",
		"Consul node id":      "cat /var/lib/consul/node-id",
		"broker cluster name": "curl -sf -u guest:guest http://127.0.0.1:15672/api/cluster-name",
		"service key":         "sha256sum </var/lib/xivo-auth-keys/xivo-ctid-key.yml",
	} {
		got := ask(script)
		if got == "" {
			t.Errorf("%s has no %s", n.Name, what)
		}
		all[what] = got
	}
	return all
}

// storedIsThere checks that Consul's KV has what a user had stored before the
// seal, and no session of that time.
func storedIsThere(t *testing.T, n *scenario.Node) {
	t.Helper()
	entries := kvEntries(t, n.Machine, "xivo/")
	contact := false
	for _, e := range entries {
		if strings.HasPrefix(e.Key, "xivo/xivo-auth/") {
			t.Errorf("%s has the original's %s", n.Name, e.Key)
		}
		contact = contact || strings.HasSuffix(e.Key, "/firstname") && string(e.Value) == "Zoé"
	}
	if !contact {
		t.Errorf("%s lost a personal contact; there are %d keys", n.Name, len(entries))
	}
}

// picture is everything that a converge writes, and when what it could restart
// was started.
func picture(t *testing.T, n *scenario.Node) map[string]string {
	t.Helper()
	shown := map[string]string{}
	for what, script := range map[string]string{
		"database": `PGPASSWORD=proformatique pg_dump --host=localhost --username=asterisk --data-only asterisk | grep -v -e '^\\' -e '^--'`,
		"files":    `find /etc /usr/share/xivo-certs /var/lib/xivo-auth-keys /var/lib/consul -xdev -type f ! -path '/var/lib/consul/*/*' -printf '%p %T@ %m %u:%g\n' | sort`,
		"broker":   `curl -sf -u guest:guest http://127.0.0.1:15672/api/definitions`,
		// An empty KV is a 404.
		"KV":        `curl -ks -w '%{http_code}' -H "X-Consul-Token: $(cat /var/lib/consul/master_token)" "https://localhost:8500/v1/kv/?recurse"`,
		"firewall":  `iptables-save | grep '^-'`,
		"processes": `systemctl show --property=Id,MainPID,ActiveEnterTimestampMonotonic consul rabbitmq-server postgresql xivo-confd xivo-dird xivo-ctid xivo-mesh`,
	} {
		out, err := n.Run(t.Context(), "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		shown[what] = out
	}
	return shown
}
