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
	part := func(name string, f func(*testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}
	must := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(t *testing.T, n *scenario.Node, script string) string {
		t.Helper()
		out, err := n.Run(t.Context(), "sh", "-ec", script)
		must(t, err)
		return strings.TrimSpace(out)
	}
	exitCode := func(t *testing.T, n *scenario.Node, want int, argv ...string) string {
		t.Helper()
		out, err := n.Run(t.Context(), argv...)
		if got := lab.ExitCode(err); got != want {
			t.Errorf("%s: exit code %d, want %d: %v", strings.Join(argv, " "), got, want, err)
		}
		return fmt.Sprint(out, err)
	}
	telephony := func(t *testing.T, n *scenario.Node) {
		t.Helper()
		run(t, n, "systemctl is-active --quiet postgresql rabbitmq-server consul xivo-confd xivo-dird xivo-ctid")
	}
	document := func(peers ...string) []byte {
		return fmt.Appendf(nil, "#cloud-config\nxivo:\n  version: 1\n  peers: [%s]\n  secret: %s\n", strings.Join(peers, ", "), m.Secret)
	}
	ip := func(n int) string { return scenario.Address(n).String() }
	// tells waits until a node's status is as wanted.
	tells := func(t *testing.T, n *scenario.Node, what string, is func(scenario.Status) bool) scenario.Status {
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
	has := func(all []string, parts ...string) bool {
		return slices.ContainsFunc(all, func(s string) bool {
			return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(s, part) })
		})
	}

	const otherSecret, noEncryption, copied, sameAddress, stranger, namesake = 51, 52, 53, 54, 55, 56
	nodes := map[int]*scenario.Node{}
	boot := func(t *testing.T, n int, userData []byte) {
		var err error
		nodes[n], err = m.BootWith(t.Context(), n, userData)
		must(t, err)
	}
	boot(t, 1, document(ip(1), ip(2), ip(otherSecret), ip(noEncryption)))
	boot(t, 3, document())
	boot(t, 4, nil)
	must(t, nodes[4].WaitRunning(deadline(t, lab.Hang)))
	run(t, nodes[4], "systemctl stop xivo-mesh consul; iptables -D INPUT -j XIVO-MESH")
	good := secret.NewGeneration(secret.Secret(m.Secret))
	liar := func(t *testing.T, address int, key secret.Secret, says ...mesh.Member) {
		t.Helper()
		startLiar(t, nodes[4], address, good.ConsulToken(), key, says...)
	}
	liar(t, otherSecret, secret.NewGeneration("a sentence of somebody else").GossipKey())
	liar(t, noEncryption, "")

	part("all peers are down: it is joining, and telephony runs", func(t *testing.T) {
		must(t, nodes[1].WaitRunning(deadline(t, lab.Hang)))
		tells(t, nodes[1], "that it is joining", func(s scenario.Status) bool { return s.State == "joining" && has(s.Errors, ip(2)) })
		exitCode(t, nodes[1], 3, "xivo-firstboot", "status")
		telephony(t, nodes[1])
	})

	part("a peer with another secret is named", func(t *testing.T) {
		tells(t, nodes[1], "it", func(s scenario.Status) bool {
			return has(s.Errors, ip(otherSecret)+" in the WAN: it has another secret")
		})
	})

	part("a peer without encryption is named", func(t *testing.T) {
		tells(t, nodes[1], "it", func(s scenario.Status) bool {
			return has(s.Errors, ip(noEncryption)+" in the WAN: its gossip is not encrypted")
		})
	})

	part("the wizard was not passed yet: it waits, and goes on by itself", func(t *testing.T) {
		run(t, nodes[1], "systemctl stop xivo-mesh; mv /var/lib/xivo/configured /root/; rm /var/lib/xivo-firstboot/status.json; systemctl start xivo-mesh")
		tells(t, nodes[1], "that it waits", func(s scenario.Status) bool { return s.State == "waiting" && strings.Contains(s.Why, "wizard") })
		exitCode(t, nodes[1], 3, "xivo-firstboot", "status")
		run(t, nodes[1], "mv /root/configured /var/lib/xivo/")
		tells(t, nodes[1], "that it goes on", func(s scenario.Status) bool { return s.State == "joining" && !s.At.IsZero() })
	})

	uuids := map[int]string{}
	users := map[int]scenario.User{}
	part("it joins by itself when a peer appears", func(t *testing.T) {
		boot(t, 2, document(ip(1)))
		for _, n := range []int{1, 2} {
			_, err := nodes[n].WaitJoined(deadline(t, lab.Hang), 1, nodes[2].Booted)
			must(t, err)
		}
		must(t, nodes[2].WaitRunning(deadline(t, lab.Hang)))
		for _, n := range []int{1, 2} {
			var err error
			uuids[n], err = nodes[n].UUID(t.Context())
			must(t, err)
			users[n], err = nodes[n].AddUser(t.Context(), fmt.Sprint("User", n))
			must(t, err)
		}
		must(t, errors.Join(
			nodes[1].Finds(deadline(t, lab.Hang), users[2], uuids[2]),
			nodes[2].Finds(deadline(t, lab.Hang), users[1], uuids[1])))
	})

	part("a document that was broken later is told, and the last good one stays in force", func(t *testing.T) {
		const file = "/var/lib/cloud/instance/cloud-config.txt"
		run(t, nodes[1], "cp -p "+file+" /root/; sed -i s/peers:/peer:/ "+file)
		tells(t, nodes[1], "it", func(s scenario.Status) bool {
			return s.State == "joined" && has(s.Errors, "the last good one is", "peer")
		})
		run(t, nodes[1], "mv /root/cloud-config.txt "+file)
		tells(t, nodes[1], "nothing more of it", func(s scenario.Status) bool { return s.State == "joined" && s.Errors == nil })
	})

	written := func(t *testing.T) map[string]string {
		all := map[string]string{}
		for _, n := range []int{1, 2} {
			for what, shown := range picture(t, nodes[n]) {
				all[fmt.Sprint(what, " of node ", n)] = shown
			}
		}
		return all
	}
	refused := func(t *testing.T, n *scenario.Node, why ...string) {
		t.Helper()
		tells(t, n, "that it is refused", func(s scenario.Status) bool {
			return s.State == "waiting" && has([]string{s.Why}, append(why, "refused by node")...)
		})
		exitCode(t, n, 3, "xivo-firstboot", "status")
		must(t, lab.Wait(deadline(t, lab.Hang), "it to leave the WAN", func(ctx context.Context) (bool, error) {
			wan, err := wanOf(ctx, nodes[1])
			if status := wan[n.Name]; err == nil && status != "left" {
				err = fmt.Errorf("for node 1 it is %s", status)
			}
			return err == nil, err
		}))
		telephony(t, n)
	}

	part("another XiVO version is refused: nothing is written, and it leaves the WAN again", func(t *testing.T) {
		must(t, nodes[3].WaitRunning(deadline(t, lab.Hang)))
		tells(t, nodes[3], "that it is alone", func(s scenario.Status) bool { return s.State == "alone" })
		before := written(t)
		run(t, nodes[3], "echo 16.04 >/usr/share/xivo/XIVO-VERSION; sed -i 's/peers: .*/peers: ["+ip(1)+"]/' /var/lib/cloud/instance/cloud-config.txt")
		refused(t, nodes[3], "runs XiVO 16.04", "runs 16.03")
		if diff := cmp.Diff(before, written(t)); diff != "" {
			t.Errorf("the mesh (-before +after):\n%s", diff)
		}
		links, err := nodes[3].Links(t.Context())
		must(t, err)
		if sources, err := nodes[3].SQL(t.Context(), "SELECT count(*) FROM directories WHERE dirtype = 'xivo' AND uri NOT LIKE '%localhost%'"); len(links) > 0 || sources != "0" {
			t.Errorf("the refused node has links %v and %s sources of others (%v)", links, sources, err)
		}
	})

	part("the copy of a member, with its UUID, is refused and goes on alone; the member stays", func(t *testing.T) {
		run(t, nodes[3], "systemctl stop xivo-mesh; echo 16.03 >/usr/share/xivo/XIVO-VERSION; sed -i 's/\"uuid\": \".*\"/\"uuid\": \""+uuids[2]+"\"/' /var/lib/xivo-firstboot/journal.json; systemctl start xivo-mesh")
		refused(t, nodes[3], "has the UUID of", uuids[2])
		for _, n := range []int{1, 2} {
			s, err := nodes[n].Status(t.Context())
			must(t, err)
			if s.State != "joined" || !s.Answered(uuids[3-n]) {
				t.Errorf("node %d is %s: %s", n, s.State, s.Why)
			}
		}
	})

	// says is what a machine without a XiVO says that it is.
	says := func(address int, change func(*mesh.Member)) mesh.Member {
		member := mesh.Member{UUID: uuid.New(), Host: fmt.Sprint("liar", address), Address: ip(address), Version: "16.03", KeyID: good.KeyID(), Registered: time.Now()}
		change(&member)
		return member
	}
	part("the same UUID alive twice: both are named", func(t *testing.T) {
		liar(t, copied, good.GossipKey(), says(copied, func(m *mesh.Member) { m.UUID = uuid.MustParse(uuids[2]) }))
		s := tells(t, nodes[1], "it", func(s scenario.Status) bool { return len(s.Refused) == 1 })
		if r := s.Refused[0]; r.Member.Host != "liar53" || !strings.Contains(r.Reason, "node2 ("+ip(2)) || s.State != "joined" {
			t.Errorf("it tells %+v, and is %s", r, s.State)
		}
		leaveLiar(t, nodes[4], copied)
	})

	part("the same address with the one that has it alive is refused, and said", func(t *testing.T) {
		liar(t, sameAddress, good.GossipKey(), says(sameAddress, func(m *mesh.Member) { m.Address = ip(2) }))
		s := tells(t, nodes[1], "it", func(s scenario.Status) bool { return len(s.Refused) == 1 })
		if r := s.Refused[0]; !strings.Contains(r.Reason, "is at the address of node2") || s.State != "joined" {
			t.Errorf("it tells %+v, and is %s", r, s.State)
		}
		leaveLiar(t, nodes[4], sameAddress)
	})

	part("a member of the WAN that is not managed is told", func(t *testing.T) {
		liar(t, stranger, good.GossipKey())
		s := tells(t, nodes[1], "it", func(s scenario.Status) bool { return has(s.NotManaged, "liar55") })
		if s.State != "joined" {
			t.Errorf("it is %s", s.State)
		}
		leaveLiar(t, nodes[4], stranger)
	})

	first, second := says(namesake, func(m *mesh.Member) { m.Host = "node2" }), says(namesake, func(m *mesh.Member) { m.Name = "heir" })
	peer := func(s scenario.Status, m mesh.Member) bool {
		for _, p := range s.Peers {
			if p.UUID == m.UUID.String() {
				return true
			}
		}
		return false
	}
	part("the same host name works, and is told", func(t *testing.T) {
		liar(t, namesake, good.GossipKey(), first)
		tells(t, nodes[1], "it", func(s scenario.Status) bool {
			return peer(s, first) && s.Answered(uuids[2]) && has(s.Notices, "2 nodes have the host name node2", first.UUID.String(), uuids[2])
		})
	})

	part("a new node at the address of a silent one replaces it", func(t *testing.T) {
		leaveLiar(t, nodes[4], namesake)
		liar(t, namesake, good.GossipKey(), second)
		for _, n := range []int{1, 2} {
			tells(t, nodes[n], "it", func(s scenario.Status) bool { return peer(s, second) && !peer(s, first) })
		}
	})

	part("forget takes a dead node out, on every node; one that lives is not forgotten", func(t *testing.T) {
		if out := exitCode(t, nodes[1], 1, "xivo-firstboot", "forget", uuids[2]); !strings.Contains(out, "is alive") {
			t.Errorf("it says: %s", out)
		}
		exitCode(t, nodes[1], 2, "xivo-firstboot", "forget", "nobody")
		leaveLiar(t, nodes[4], namesake)
		must(t, lab.Wait(deadline(t, lab.Hang), "the dead one to be forgotten", func(ctx context.Context) (bool, error) {
			_, err := nodes[1].Run(ctx, "xivo-firstboot", "forget", second.Host)
			return err == nil, err
		}))
		for _, n := range []int{1, 2} {
			tells(t, nodes[n], "that only the other is left", func(s scenario.Status) bool { return s.State == "joined" && !peer(s, second) })
		}
	})

	part("doctor finds nothing on a good node, and what is wrong on another; it changes nothing", func(t *testing.T) {
		before := written(t)
		if out := exitCode(t, nodes[1], 0, "xivo-firstboot", "doctor"); strings.Contains(out, "\nfail ") || !strings.Contains(out, "\nok    canary") {
			t.Errorf("it says: %s", out)
		}
		const override = "/etc/xivo-ctid/conf.d/00-site.yml"
		run(t, nodes[1], "printf 'service_discovery:\n  advertise_address: 192.0.2.1\n' >"+override)
		if out := exitCode(t, nodes[1], 1, "xivo-firstboot", "doctor"); !strings.Contains(out, "\nfail  ctid ") || !strings.Contains(out, "00-site.yml") {
			t.Errorf("it says: %s", out)
		}
		run(t, nodes[1], "rm "+override)
		if diff := cmp.Diff(before, written(t)); diff != "" {
			t.Errorf("-before +after:\n%s", diff)
		}
	})

	part("a node that leaves is gone for everybody, and goes on alone", func(t *testing.T) {
		out := exitCode(t, nodes[2], 0, "xivo-firstboot", "leave")
		if !strings.Contains(out, "state: alone") {
			t.Errorf("it says: %s", out)
		}
		for from, of := range map[int]int{1: 2, 2: 1} {
			must(t, lab.Wait(deadline(t, lab.Hang), fmt.Sprintf("node %d not to find the people of node %d", from, of), func(ctx context.Context) (bool, error) {
				found, err := nodes[from].Lookup(ctx, users[of].Lastname)
				return err == nil && len(found) == 0, err
			}))
			tells(t, nodes[from], "nobody", func(s scenario.Status) bool { return len(s.Peers) == 0 })
		}
		telephony(t, nodes[2])
		exitCode(t, nodes[2], 0, "xivo-firstboot", "status")
	})

	part("it comes back when it is told to", func(t *testing.T) {
		if _, err := nodes[2].Run(t.Context(), "xivo-firstboot", "leave", "--undo"); err != nil && lab.ExitCode(err) != 3 {
			t.Fatal(err)
		}
		must(t, errors.Join(
			nodes[1].Finds(deadline(t, lab.Hang), users[2], uuids[2]),
			nodes[2].Finds(deadline(t, lab.Hang), users[1], uuids[1])))
	})
}

// liar's API is on its own address, for the machine that it runs on.
const liarPort = 8501

// startLiar starts a Consul on an address of its own of a machine. It joins node
// 1 and registers what it says to be.
func startLiar(t *testing.T, n *scenario.Node, address int, token, key secret.Secret, says ...mesh.Member) {
	t.Helper()
	ctx := deadline(t, lab.Hang)
	ip := scenario.Address(address).String()
	name := fmt.Sprint("liar", address)
	if len(says) > 0 && says[0].Name != "" {
		name = says[0].Name
	}
	config, err := json.Marshal(map[string]any{
		"datacenter": name, "acl_datacenter": name, "node_name": name, "acl_default_policy": "deny", "acl_master_token": token.Reveal(),
		"bind_addr": ip, "advertise_addr": ip, "client_addr": ip, "data_dir": "/var/tmp/" + name, "encrypt": key.Reveal(),
		"server": true, "bootstrap_expect": 1, "performance": map[string]int{"raft_multiplier": 1}, "disable_update_check": true,
		"ports": map[string]int{"dns": -1, "http": liarPort}, "retry_join_wan": []string{scenario.Address(1).String()},
	})
	if err == nil {
		err = feed(ctx, n.Machine, config, fmt.Sprintf(`umask 077; cat >/root/%[1]s.json
ip address replace %[2]s/24 dev eth0
systemctl stop liar@%[3]d 2>/dev/null || true
systemd-run --quiet --collect --unit=liar@%[3]d consul agent -config-file /root/%[1]s.json`, name, ip, address))
	}
	if err != nil {
		t.Fatal(err)
	}
	api := func(ctx context.Context, body []byte, method, path string) error {
		return feed(ctx, n.Machine, body, fmt.Sprintf(`curl -sSf -X %s -H "X-Consul-Token: $(sed 's/.*"acl_master_token":"\([^"]*\)".*/\1/' /root/%s.json)" --data-binary @- 'http://%s:%d%s' >/dev/null`, method, name, ip, liarPort, path))
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

// leaveLiar takes the Consul of an address out of the WAN.
func leaveLiar(t *testing.T, n *scenario.Node, address int) {
	t.Helper()
	script := fmt.Sprintf(`set -- $(tr '\0' ' ' </proc/$(systemctl show --value --property=MainPID liar@%d)/cmdline); while [ $# -gt 1 ]; do shift; done
curl -sSf -X PUT -H "X-Consul-Token: $(sed 's/.*"acl_master_token":"\([^"]*\)".*/\1/' "$1")" http://%s:%d/v1/agent/leave`, address, scenario.Address(address), liarPort)
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
