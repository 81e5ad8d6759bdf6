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
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// TestPeers shows what a node does when its peers are not as they should be, and
// how nodes leave. Nodes 1 and 2 are a mesh, node 3 is one that it refuses, and
// on machine 4 are Consuls without a XiVO, which say of themselves what they
// like. Each part builds on the ones before, so the first that fails ends it.
func TestPeers(t *testing.T) {
	needsLab(t)
	t.Parallel()
	m := newMesh(t)
	p := &peers{
		mesh: m, good: secret.Stretch(secret.Secret(m.Secret)),
		nodes: map[int]*scenario.Node{}, uuids: map[int]string{}, users: map[int]scenario.User{},
	}
	p.boot(t, 1, p.document(ip(1), ip(2), ip(impostorOtherSecret), ip(impostorNoEncryption)))
	p.boot(t, 3, p.document())
	p.boot(t, 4, nil)
	must(t, p.nodes[4].WaitRunning(deadline(t, lab.Hang)))
	runIn(t, p.nodes[4], "systemctl stop xivo-mesh consul; iptables -D INPUT -j XIVO-MESH")
	p.impostor(t, impostorOtherSecret, secret.Stretch("a sentence of somebody else").GossipKey())
	p.impostor(t, impostorNoEncryption, "")
	inOrder(t, []part{
		{"all peers are down: it is joining, and telephony runs", p.allDown},
		{"a peer with another secret is named", p.otherSecret},
		{"a peer without encryption is named", p.noEncryption},
		{"the wizard was not passed yet: it waits, and goes on by itself", p.wizard},
		{"it joins by itself when a peer appears", p.joins},
		{"a document that was broken later is told, and the last good one stays in force", p.brokenDocument},
		{"another XiVO version is refused: nothing is written, and it leaves the WAN again", p.otherVersion},
		{"the copy of a member, with its UUID, is refused and goes on alone; the member stays", p.copyOfAMember},
		{"the same UUID alive twice: both are named", p.sameUUID},
		{"the same address with the one that has it alive is refused, and said", p.sameAddress},
		{"a member of the WAN that is not managed is told", p.stranger},
		{"the same host name works, and is told", p.sameHostName},
		{"a new node at the address of a silent one replaces it", p.replaced},
		{"forget takes a dead node out, on every node; one that lives is not forgotten", p.forget},
		{"doctor finds nothing on a good node, and what is wrong on another; it changes nothing", p.doctor},
		{"a node that leaves is gone for everybody, and goes on alone", p.leaves},
		{"it comes back when it is told to", p.comesBack},
	})
}

// The last bytes of the addresses of the Consuls without a XiVO.
const impostorOtherSecret, impostorNoEncryption, impostorCopied, impostorSameAddress, impostorStranger, impostorNamesake = 51, 52, 53, 54, 55, 56

// peers is what the parts of TestPeers hand on to each other.
type peers struct {
	mesh  *scenario.Mesh
	good  secret.Generation // of the mesh's secret
	nodes map[int]*scenario.Node
	uuids map[int]string
	users map[int]scenario.User
	// What the Consul at the address of the namesake says that it is, at first and
	// then.
	first, second mesh.Member
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

func isPeer(s scenario.Status, m mesh.Member) bool {
	return slices.ContainsFunc(s.Peers, func(p scenario.Peer) bool { return p.UUID == m.UUID.String() })
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

func (p *peers) impostor(t *testing.T, address int, key secret.Secret, says ...mesh.Member) {
	t.Helper()
	startImpostor(t, p.nodes[4], address, p.good.ConsulToken(), key, says...)
}

// says is what a machine without a XiVO says that it is.
func (p *peers) says(address int, change func(*mesh.Member)) mesh.Member {
	member := mesh.Member{UUID: uuid.New(), Host: fmt.Sprint("impostor", address), Address: ip(address), Version: "16.03", KeyID: p.good.KeyID(), Registered: time.Now()}
	change(&member)
	return member
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

// refused waits until a node says that the mesh refuses it, and has left the WAN.
func (p *peers) refused(t *testing.T, n *scenario.Node, why ...string) {
	t.Helper()
	waitStatus(t, n, "that it is refused", func(s scenario.Status) bool {
		return s.State == "waiting" && anyHas([]string{s.Why}, append(why, "refused by node")...)
	})
	exitCode(t, n, 3, "xivo-firstboot", "status")
	must(t, lab.Wait(deadline(t, lab.Hang), "it to leave the WAN", func(ctx context.Context) (bool, error) {
		wan, err := wanOf(ctx, p.nodes[1])
		if status := wan[n.Name]; err == nil && status != "left" {
			err = fmt.Errorf("for node 1 it is %s", status)
		}
		return err == nil, err
	}))
	telephonyRuns(t, n)
}

func (p *peers) allDown(t *testing.T) {
	must(t, p.nodes[1].WaitRunning(deadline(t, lab.Hang)))
	waitStatus(t, p.nodes[1], "that it is joining", func(s scenario.Status) bool { return s.State == "joining" && anyHas(s.Errors, ip(2)) })
	exitCode(t, p.nodes[1], 3, "xivo-firstboot", "status")
	telephonyRuns(t, p.nodes[1])
}

func (p *peers) otherSecret(t *testing.T) {
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return anyHas(s.Errors, ip(impostorOtherSecret)+" in the WAN: it has another secret")
	})
}

func (p *peers) noEncryption(t *testing.T) {
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return anyHas(s.Errors, ip(impostorNoEncryption)+" in the WAN: its gossip is not encrypted")
	})
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

func (p *peers) copyOfAMember(t *testing.T) {
	runIn(t, p.nodes[3], "systemctl stop xivo-mesh; echo 16.03 >/usr/share/xivo/XIVO-VERSION; sed -i 's/\"uuid\": \".*\"/\"uuid\": \""+p.uuids[2]+"\"/' /var/lib/xivo-firstboot/journal.json; systemctl start xivo-mesh")
	p.refused(t, p.nodes[3], "has the UUID of", p.uuids[2])
	for _, n := range []int{1, 2} {
		s, err := p.nodes[n].Status(t.Context())
		must(t, err)
		if s.State != "joined" || !s.Answered(p.uuids[3-n]) {
			t.Errorf("node %d is %s: %s", n, s.State, s.Why)
		}
	}
}

func (p *peers) sameUUID(t *testing.T) {
	p.impostor(t, impostorCopied, p.good.GossipKey(), p.says(impostorCopied, func(m *mesh.Member) { m.UUID = uuid.MustParse(p.uuids[2]) }))
	s := waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool { return len(s.Refused) == 1 })
	if r := s.Refused[0]; r.Member.Host != "impostor53" || !strings.Contains(r.Reason, "node2 ("+ip(2)) || s.State != "joined" {
		t.Errorf("it tells %+v, and is %s", r, s.State)
	}
	leaveImpostor(t, p.nodes[4], impostorCopied)
}

func (p *peers) sameAddress(t *testing.T) {
	p.impostor(t, impostorSameAddress, p.good.GossipKey(), p.says(impostorSameAddress, func(m *mesh.Member) { m.Address = ip(2) }))
	s := waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool { return len(s.Refused) == 1 })
	if r := s.Refused[0]; !strings.Contains(r.Reason, "is at the address of node2") || s.State != "joined" {
		t.Errorf("it tells %+v, and is %s", r, s.State)
	}
	leaveImpostor(t, p.nodes[4], impostorSameAddress)
}

func (p *peers) stranger(t *testing.T) {
	p.impostor(t, impostorStranger, p.good.GossipKey())
	s := waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool { return anyHas(s.NotManaged, "impostor55") })
	if s.State != "joined" {
		t.Errorf("it is %s", s.State)
	}
	leaveImpostor(t, p.nodes[4], impostorStranger)
}

func (p *peers) sameHostName(t *testing.T) {
	p.first = p.says(impostorNamesake, func(m *mesh.Member) { m.Host = "node2" })
	p.second = p.says(impostorNamesake, func(m *mesh.Member) { m.Name = "heir" })
	p.impostor(t, impostorNamesake, p.good.GossipKey(), p.first)
	waitStatus(t, p.nodes[1], "it", func(s scenario.Status) bool {
		return isPeer(s, p.first) && s.Answered(p.uuids[2]) && anyHas(s.Notices, "2 nodes have the host name node2", p.first.UUID.String(), p.uuids[2])
	})
}

func (p *peers) replaced(t *testing.T) {
	leaveImpostor(t, p.nodes[4], impostorNamesake)
	p.impostor(t, impostorNamesake, p.good.GossipKey(), p.second)
	for _, n := range []int{1, 2} {
		waitStatus(t, p.nodes[n], "it", func(s scenario.Status) bool { return isPeer(s, p.second) && !isPeer(s, p.first) })
	}
}

func (p *peers) forget(t *testing.T) {
	if out := exitCode(t, p.nodes[1], 1, "xivo-firstboot", "forget", p.uuids[2]); !strings.Contains(out, "is alive") {
		t.Errorf("it says: %s", out)
	}
	exitCode(t, p.nodes[1], 2, "xivo-firstboot", "forget", "nobody")
	leaveImpostor(t, p.nodes[4], impostorNamesake)
	must(t, lab.Wait(deadline(t, lab.Hang), "the dead one to be forgotten", func(ctx context.Context) (bool, error) {
		_, err := p.nodes[1].Run(ctx, "xivo-firstboot", "forget", p.second.Host)
		return err == nil, err
	}))
	for _, n := range []int{1, 2} {
		waitStatus(t, p.nodes[n], "that only the other is left", func(s scenario.Status) bool { return s.State == "joined" && !isPeer(s, p.second) })
	}
}

func (p *peers) doctor(t *testing.T) {
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

// impostor's API is on its own address, for the machine that it runs on.
const impostorPort = 8501

// startImpostor starts a Consul on an address of its own of a machine. It joins node
// 1 and registers what it says to be.
func startImpostor(t *testing.T, n *scenario.Node, address int, token, key secret.Secret, says ...mesh.Member) {
	t.Helper()
	ctx := deadline(t, lab.Hang)
	ip := scenario.Address(address).String()
	name := fmt.Sprint("impostor", address)
	if len(says) > 0 && says[0].Name != "" {
		name = says[0].Name
	}
	config, err := json.Marshal(map[string]any{
		"datacenter": name, "acl_datacenter": name, "node_name": name, "acl_default_policy": "deny", "acl_master_token": token.Reveal(),
		"bind_addr": ip, "advertise_addr": ip, "client_addr": ip, "data_dir": "/var/tmp/" + name, "encrypt": key.Reveal(),
		"server": true, "bootstrap_expect": 1, "performance": map[string]int{"raft_multiplier": 1}, "disable_update_check": true,
		"ports": map[string]int{"dns": -1, "http": impostorPort}, "retry_join_wan": []string{scenario.Address(1).String()},
	})
	if err == nil {
		err = feed(ctx, n.Machine, config, fmt.Sprintf(`umask 077; cat >/root/%[1]s.json
ip address replace %[2]s/24 dev eth0
systemctl stop impostor@%[3]d 2>/dev/null || true
systemd-run --quiet --collect --unit=impostor@%[3]d consul agent -config-file /root/%[1]s.json`, name, ip, address))
	}
	if err != nil {
		t.Fatal(err)
	}
	api := func(ctx context.Context, body []byte, method, path string) error {
		return feed(ctx, n.Machine, body, fmt.Sprintf(`curl -sSf -X %s -H "X-Consul-Token: $(sed 's/.*"acl_master_token":"\([^"]*\)".*/\1/' /root/%s.json)" --data-binary @- 'http://%s:%d%s' >/dev/null`, method, name, ip, impostorPort, path))
	}
	err = lab.Wait(ctx, name+" to have a leader", func(ctx context.Context) (bool, error) {
		err := api(ctx, nil, "GET", "/v1/catalog/nodes?consistent")
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range says {
		m.Name = name
		registration, err := json.Marshal(map[string]any{"ID": mesh.ServiceName, "Name": mesh.ServiceName, "Address": m.Address, "Tags": m.Tags()})
		if err == nil {
			err = api(ctx, bytes.TrimSpace(registration), "PUT", "/v1/agent/service/register")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// leaveImpostor takes the Consul of an address out of the WAN.
func leaveImpostor(t *testing.T, n *scenario.Node, address int) {
	t.Helper()
	script := fmt.Sprintf(`set -- $(tr '\0' ' ' </proc/$(systemctl show --value --property=MainPID impostor@%d)/cmdline); while [ $# -gt 1 ]; do shift; done
curl -sSf -X PUT -H "X-Consul-Token: $(sed 's/.*"acl_master_token":"\([^"]*\)".*/\1/' "$1")" http://%s:%d/v1/agent/leave`, address, scenario.Address(address), impostorPort)
	if out, err := n.Run(deadline(t, lab.Hang), "sh", "-ec", script); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
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
