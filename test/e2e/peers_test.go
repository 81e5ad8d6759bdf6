package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// TestPeers shows what a node does when its peers are not as they should be, and
// how nodes leave. Nodes 1 and 2 are a mesh, node 3 is one that it refuses, and node 4
// has another secret. Each part builds on the ones before, so the first that fails
// ends it.
func TestPeers(t *testing.T) {
	needsLab(t)
	t.Parallel()
	p := &peers{mesh: newMesh(t), nodes: map[int]*scenario.Node{}, uuids: map[int]string{}, users: map[int]scenario.User{}}
	p.boot(t, 1, p.document(ip(1), ip(2), ip(4)))
	p.boot(t, 3, p.document())
	p.boot(t, 4, bytes.ReplaceAll(p.document(), []byte(p.mesh.Secret), []byte("many brown owls left their old barn")))
	inOrder(t, []part{
		{"all peers are down: it is joining, and telephony runs", p.allDown},
		{"a peer with another secret is named", p.otherSecret},
		{"the wizard was not passed yet: it waits, and goes on by itself", p.wizard},
		{"it joins by itself when a peer appears", p.joins},
		{"a document that was broken later is told, and the last good one stays in force", p.brokenDocument},
		{"another XiVO version is refused: nothing is written anywhere", p.otherVersion},
		{"the copy of a member, with its UUID, is refused and goes on alone; the member stays", p.copyOfAMember},
		{"a member of Consul's WAN that is not managed is told", p.stranger},
		{"what was refused is taken in when it is put right", p.putRight},
		{"forget takes a dead node out, on every node; one that lives is not forgotten", p.forget},
		{"doctor finds nothing on a good node, and what is wrong on another; it changes nothing", p.doctor},
		{"a node that leaves is gone for everybody, and goes on alone", p.leaves},
		{"it comes back when it is told to", p.comesBack},
	})
}

// peers is what the parts of TestPeers hand on to each other.
type peers struct {
	mesh  *scenario.Mesh
	nodes map[int]*scenario.Node
	uuids map[int]string
	users map[int]scenario.User
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// runIn runs a script in a node.
func runIn(t *testing.T, n *scenario.Node, script string) string {
	t.Helper()
	out, err := n.Run(t.Context(), "sh", "-ec", script)
	must(t, err)
	return strings.TrimSpace(out)
}

// exitCode runs a command that ends with a code, and returns all that it says.
func exitCode(t *testing.T, n *scenario.Node, want int, argv ...string) string {
	t.Helper()
	out, err := n.Run(t.Context(), argv...)
	if got := lab.ExitCode(err); got != want {
		t.Errorf("%s: exit code %d, want %d: %v", strings.Join(argv, " "), got, want, err)
	}
	return fmt.Sprint(out, err)
}

func telephonyRuns(t *testing.T, n *scenario.Node) {
	t.Helper()
	runIn(t, n, "systemctl is-active --quiet postgresql rabbitmq-server consul xivo-confd xivo-dird xivo-ctid")
}

func ip(n int) string { return scenario.Address(n).String() }

// waitStatus waits until a node's status is as wanted.
func waitStatus(t *testing.T, n *scenario.Node, what string, is func(scenario.Status) bool) scenario.Status {
	t.Helper()
	var s scenario.Status
	must(t, lab.Wait(deadline(t, lab.Hang), n.Name+" to tell "+what, func(ctx context.Context) (bool, error) {
		var err error
		if s, err = n.Status(ctx); err == nil && !is(s) {
			err = fmt.Errorf("it says %+v", s)
		}
		return err == nil, err
	}))
	return s
}

// anyHas says whether one of the texts has all of the parts.
func anyHas(all []string, parts ...string) bool {
	return slices.ContainsFunc(all, func(s string) bool {
		return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s, part) })
	})
}

func isPeer(s scenario.Status, uuid string) bool {
	return slices.ContainsFunc(s.Peers, func(p scenario.Peer) bool { return p.UUID == uuid })
}

func (p *peers) boot(t *testing.T, n int, userData []byte) {
	t.Helper()
	var err error
	p.nodes[n], err = p.mesh.BootWith(t.Context(), n, userData)
	must(t, err)
}

func (p *peers) document(peers ...string) []byte {
	return fmt.Appendf(nil, "#cloud-config\nxivo:\n  version: 1\n  peers: [%s]\n  secret: %s\n", strings.Join(peers, ", "), p.mesh.Secret)
}

// written is all that nodes 1 and 2 have written.
func (p *peers) written(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, n := range []int{1, 2} {
		for what, shown := range picture(t, p.nodes[n]) {
			all[fmt.Sprint(what, " of node ", n)] = shown
		}
	}
	return all
}

// refused waits until a node says that the mesh refuses it. It is in nobody's WAN.
func (p *peers) refused(t *testing.T, n *scenario.Node, why ...string) {
	t.Helper()
	waitStatus(t, n, "that it is refused", func(s scenario.Status) bool {
		return s.State == "waiting" && anyHas([]string{s.Why}, append(why, "does not let this node in")...)
	})
	exitCode(t, n, 3, "xivo-firstboot", "status")
	wan, err := wanOf(t.Context(), p.nodes[1])
	must(t, err)
	if status, there := wan[n.Name]; there {
		t.Errorf("for node 1's Consul it is %s", status)
	}
	telephonyRuns(t, n)
}

func (p *peers) allDown(t *testing.T) {
	must(t, p.nodes[1].WaitRunning(deadline(t, lab.Hang)))
	waitStatus(t, p.nodes[1], "that it is joining", func(s scenario.Status) bool { return s.State == "joining" && anyHas(s.Errors, ip(2)) })
	exitCode(t, p.nodes[1], 3, "xivo-firstboot", "status")
	telephonyRuns(t, p.nodes[1])
}

func (p *peers) otherSecret(t *testing.T) {
	must(t, p.nodes[4].WaitRunning(deadline(t, lab.Hang)))
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return anyHas(s.Errors, ip(4), "without a word: it has another secret")
	})
	must(t, p.nodes[4].Poweroff(deadline(t, lab.Hang)))
}

func (p *peers) wizard(t *testing.T) {
	runIn(t, p.nodes[1], "systemctl stop xivo-mesh; mv /var/lib/xivo/configured /root/; rm /var/lib/xivo-firstboot/status.json; systemctl start xivo-mesh")
	waitStatus(t, p.nodes[1], "that it waits", func(s scenario.Status) bool { return s.State == "waiting" && strings.Contains(s.Why, "wizard") })
	exitCode(t, p.nodes[1], 3, "xivo-firstboot", "status")
	runIn(t, p.nodes[1], "mv /root/configured /var/lib/xivo/")
	waitStatus(t, p.nodes[1], "that it goes on", func(s scenario.Status) bool { return s.State == "joining" && !s.At.IsZero() })
}

func (p *peers) joins(t *testing.T) {
	p.boot(t, 2, p.document(ip(1)))
	for _, n := range []int{1, 2} {
		_, err := p.nodes[n].WaitJoined(deadline(t, lab.Hang), 1, p.nodes[2].Booted)
		must(t, err)
	}
	must(t, p.nodes[2].WaitRunning(deadline(t, lab.Hang)))
	for _, n := range []int{1, 2} {
		var err error
		p.uuids[n], err = p.nodes[n].UUID(t.Context())
		must(t, err)
		p.users[n], err = p.nodes[n].AddUser(t.Context(), fmt.Sprint("User", n))
		must(t, err)
	}
	must(t, errors.Join(
		p.nodes[1].Finds(deadline(t, lab.Hang), p.users[2], p.uuids[2]),
		p.nodes[2].Finds(deadline(t, lab.Hang), p.users[1], p.uuids[1])))
}

func (p *peers) brokenDocument(t *testing.T) {
	const file = "/var/lib/cloud/instance/cloud-config.txt"
	runIn(t, p.nodes[1], "cp -p "+file+" /root/; sed -i s/peers:/peer:/ "+file)
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return s.State == "joined" && anyHas(s.Errors, "the last good one is", "peer")
	})
	runIn(t, p.nodes[1], "mv /root/cloud-config.txt "+file)
	waitStatus(t, p.nodes[1], "nothing more of it", func(s scenario.Status) bool { return s.State == "joined" && s.Errors == nil })
}

func (p *peers) otherVersion(t *testing.T) {
	must(t, p.nodes[3].WaitRunning(deadline(t, lab.Hang)))
	waitStatus(t, p.nodes[3], "that it is alone", func(s scenario.Status) bool { return s.State == "alone" })
	before := p.written(t)
	runIn(t, p.nodes[3], "echo 16.04 >/usr/share/xivo/XIVO-VERSION; sed -i 's/peers: .*/peers: ["+ip(1)+"]/' /var/lib/cloud/instance/cloud-config.txt")
	p.refused(t, p.nodes[3], "runs XiVO 16.04", "runs 16.03")
	if diff := cmp.Diff(before, p.written(t)); diff != "" {
		t.Errorf("the mesh (-before +after):\n%s", diff)
	}
	links, err := p.nodes[3].Links(t.Context())
	must(t, err)
	if sources, err := p.nodes[3].SQL(t.Context(), "SELECT count(*) FROM directories WHERE dirtype = 'xivo' AND uri NOT LIKE '%localhost%'"); len(links) > 0 || sources != "0" {
		t.Errorf("the refused node has links %v and %s sources of others (%v)", links, sources, err)
	}
}

// takes gives node 3 a UUID, as if its files were copied from the node that has it.
func (p *peers) takes(t *testing.T, from, to string) {
	t.Helper()
	runIn(t, p.nodes[3], "systemctl stop xivo-mesh xivo-overlay; echo 16.03 >/usr/share/xivo/XIVO-VERSION; sed -i 's/"+from+"/"+to+"/' /var/lib/xivo-firstboot/journal.json /var/lib/xivo-firstboot/mesh/address.json; rm -f /var/lib/xivo-firstboot/mesh/peers.json; systemctl start xivo-overlay xivo-mesh")
}

func (p *peers) copyOfAMember(t *testing.T) {
	var err error
	p.uuids[3], err = p.nodes[3].UUID(t.Context())
	must(t, err)
	p.takes(t, p.uuids[3], p.uuids[2])
	p.refused(t, p.nodes[3], "has the UUID of", p.uuids[2])
	for _, n := range []int{1, 2} {
		s, err := p.nodes[n].Status(t.Context())
		must(t, err)
		if s.State != "joined" || !s.Answered(p.uuids[3-n]) {
			t.Errorf("node %d is %s: %s", n, s.State, s.Why)
		}
	}
	// Both names, and on the node that refuses it, too.
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return anyHas(s.Notices, "node3 (", "has the UUID of node2 (", "one of the two is a copy")
	})
}

// stranger shows a Consul that is in the WAN and no member of the mesh. Somebody with
// the secret put it there: from outside, nobody reaches the WAN.
func (p *peers) stranger(t *testing.T) {
	config := `{"datacenter": "stranger", "node_name": "stranger", "bind_addr": "%[1]s", "data_dir": "/var/tmp/stranger", "encrypt": "` + runIn(t, p.nodes[1], `sed -n 's/.*"encrypt": "\(.*\)".*/\1/p' /etc/consul/xivo/interconnection.json`) + `", "server": true, "bootstrap_expect": 1, "disable_update_check": true,
"ports": {"dns": -1, "http": -1, "server": 7300, "serf_lan": 7301, "serf_wan": 7302}, "retry_join_wan": ["%[1]s:8302"]}`
	address := runIn(t, p.nodes[1], "ip -o -4 address show dev lo | sed -n 's/.*inet \\(100[0-9.]*\\).*/\\1/p'")
	must(t, feed(deadline(t, lab.Hang), p.nodes[1].Machine, fmt.Appendf(nil, config, address), "umask 077; cat >/root/stranger.json; systemd-run --quiet --collect --unit=stranger consul agent -config-file /root/stranger.json"))
	s := waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool { return anyHas(s.NotManaged, "stranger") })
	if s.State != "joined" {
		t.Errorf("it is %s", s.State)
	}
	runIn(t, p.nodes[1], "systemctl kill --signal=INT stranger; while systemctl is-active --quiet stranger; do sleep 0.2; done")
}

func (p *peers) putRight(t *testing.T) {
	p.takes(t, p.uuids[2], p.uuids[3])
	for _, n := range []int{1, 2, 3} {
		_, err := p.nodes[n].WaitJoined(deadline(t, lab.Hang), 2, time.Now())
		must(t, err)
	}
}

func (p *peers) forget(t *testing.T) {
	if out := exitCode(t, p.nodes[1], 1, "xivo-firstboot", "forget", p.uuids[3]); !strings.Contains(out, "is alive") {
		t.Errorf("it says: %s", out)
	}
	exitCode(t, p.nodes[1], 2, "xivo-firstboot", "forget", "nobody")
	must(t, p.nodes[3].Poweroff(deadline(t, lab.Hang)))
	if out := exitCode(t, p.nodes[1], 0, "xivo-firstboot", "forget", "node3"); !strings.Contains(out, "secret") {
		t.Errorf("it does not say that whoever has the secret can return: %s", out)
	}
	for _, n := range []int{1, 2} {
		waitStatus(t, p.nodes[n], "that only the other is left", func(s scenario.Status) bool { return s.State == "joined" && !isPeer(s, p.uuids[3]) })
	}
}

func (p *peers) doctor(t *testing.T) {
	// The copy of before is told for ten minutes, unless the service is started anew.
	if out := exitCode(t, p.nodes[1], 1, "xivo-firstboot", "doctor"); !strings.Contains(out, "one of the two is a copy") {
		t.Errorf("it says: %s", out)
	}
	runIn(t, p.nodes[1], "systemctl restart xivo-overlay")
	_, err := p.nodes[1].WaitJoined(deadline(t, lab.Hang), 1, time.Now())
	must(t, err)
	before := p.written(t)
	if out := exitCode(t, p.nodes[1], 0, "xivo-firstboot", "doctor"); strings.Contains(out, "\nfail ") || !strings.Contains(out, "\nok    canary") {
		t.Errorf("it says: %s", out)
	}
	const override = "/etc/xivo-ctid/conf.d/00-site.yml"
	runIn(t, p.nodes[1], "printf 'service_discovery:\n  advertise_address: 192.0.2.1\n' >"+override)
	if out := exitCode(t, p.nodes[1], 1, "xivo-firstboot", "doctor"); !strings.Contains(out, "\nfail  ctid ") || !strings.Contains(out, "00-site.yml") {
		t.Errorf("it says: %s", out)
	}
	runIn(t, p.nodes[1], "rm "+override)
	if diff := cmp.Diff(before, p.written(t)); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}

func (p *peers) leaves(t *testing.T) {
	out := exitCode(t, p.nodes[2], 0, "xivo-firstboot", "leave")
	if !strings.Contains(out, "state: alone") {
		t.Errorf("it says: %s", out)
	}
	for from, of := range map[int]int{1: 2, 2: 1} {
		must(t, lab.Wait(deadline(t, lab.Hang), fmt.Sprintf("node %d not to find the people of node %d", from, of), func(ctx context.Context) (bool, error) {
			found, err := p.nodes[from].Lookup(ctx, p.users[of].Lastname)
			return err == nil && len(found) == 0, err
		}))
		waitStatus(t, p.nodes[from], "nobody", func(s scenario.Status) bool { return len(s.Peers) == 0 })
	}
	telephonyRuns(t, p.nodes[2])
	exitCode(t, p.nodes[2], 0, "xivo-firstboot", "status")
}

func (p *peers) comesBack(t *testing.T) {
	if _, err := p.nodes[2].Run(t.Context(), "xivo-firstboot", "leave", "--undo"); err != nil && lab.ExitCode(err) != 3 {
		t.Fatal(err)
	}
	must(t, errors.Join(
		p.nodes[1].Finds(deadline(t, lab.Hang), p.users[2], p.uuids[2]),
		p.nodes[2].Finds(deadline(t, lab.Hang), p.users[1], p.uuids[1])))
}

// wanOf is the status of each member of the WAN as a node's Consul has it, by
// the host name that the member's name begins with.
func wanOf(ctx context.Context, n *scenario.Node) (map[string]string, error) {
	out, err := n.Run(ctx, "sh", "-ec", `curl -ksSf -H "X-Consul-Token: $(cat /var/lib/consul/master_token)" "https://localhost:8500/v1/agent/members?wan=1"`)
	if err != nil {
		return nil, err
	}
	var members []struct {
		Name   string
		Status int
	}
	if err := json.Unmarshal([]byte(out), &members); err != nil {
		return nil, err
	}
	const left = 3
	status := map[string]string{}
	for _, m := range members {
		host, _, _ := strings.Cut(m.Name, "-")
		status[host] = map[int]string{1: "alive", left: "left", 4: "failed"}[m.Status]
	}
	return status, nil
}
