package converge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// wanNode is a node of which only Consul is real: enough to see who takes whom
// in, and who keeps out.
type wanNode struct {
	*node.Node
	t      *testing.T
	cmd    *exec.Cmd
	memory Memory
	last   *Pass
}

// The init system of a node whose only service is Consul.
func (w *wanNode) Start(context.Context, string) error {
	w.cmd = exec.Command(os.Getenv("XIVO_CONSUL"), "agent", "-config-dir", w.Platform.Path(platform.ConsulConfigDir), "-bind", w.Identity().Advertise)
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return w.cmd.Start()
}

func (w *wanNode) Stop(context.Context, string) error {
	w.cmd.Process.Kill()
	w.cmd.Wait()
	return nil
}
func (w *wanNode) Restart(ctx context.Context, s string) error {
	w.Stop(ctx, s)
	return w.Start(ctx, s)
}
func (w *wanNode) Active(context.Context, string) (bool, error)         { return true, nil }
func (w *wanNode) SetEnvironment(context.Context, string, string) error { return nil }
func (w *wanNode) Environment(context.Context, string) (string, error)  { return "", nil }

// wanPorts are the same for all nodes, as they are on machines.
type wanPorts struct{ server, lan, wan int }

// inNetwork is set where the test is in a network of its own.
const inNetwork = "XIVO_TEST_NETWORK"

// ownNetwork runs the test once more, in a network that has the addresses of the nodes
// and leads nowhere, and says whether this is it. Members are at no address of
// loopback.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNetwork) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for a network of its own")
	}
	const script = `ip link set lo up
for n in 1 2 3 4 5 6 7 8 9; do ip addr add 10.77.7.$n/32 dev lo; done
exec "$0" -test.v -test.run "^$1\$"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-ec", script, os.Args[0], t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Env = append(os.Environ(), inNetwork+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// startNode starts a node that has become, at an address of the test's network.
func startNode(t *testing.T, ports wanPorts, number int, version string, id uuid.UUID) *wanNode {
	t.Helper()
	address, host := fmt.Sprint("10.77.7.", number), fmt.Sprint("node", number)
	p := &platform.Platform{Root: t.TempDir()}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		must(os.MkdirAll(filepath.Dir(p.Path(name)), 0o755))
		must(os.WriteFile(p.Path(name), []byte(text), 0o600))
	}
	write(platform.VersionFile, version)
	write("/etc/group", "www-data:x:33:\n")
	p, err := platform.Detect(p.Root)
	must(err)
	p.Traits.ConsulPerformance = true // the Consul that runs is a new one
	must(os.MkdirAll(filepath.Dir(p.Path(platform.CertificateFile)), 0o755))
	must(engine.Ensure(t.Context(), identity.Certificate(p)))
	config, err := json.Marshal(map[string]any{
		"datacenter": "xivo", "acl_datacenter": "xivo", "acl_default_policy": "deny", "acl_master_token": uuid.New(),
		"data_dir": p.Path(platform.ConsulDataDir), "cert_file": p.Path(platform.CertificateFile), "key_file": p.Path(platform.CertificateKey),
		"server": true, "bootstrap_expect": 1, "rejoin_after_leave": true, "disable_update_check": true, "log_level": "ERR",
		"ports": map[string]int{"dns": -1, "http": -1, "https": server.FreePort(t), "server": ports.server, "serf_lan": ports.lan, "serf_wan": ports.wan},
	})
	must(err)
	write(platform.ConsulConfigDir+"/config.json", string(config))

	n := node.New(p, slog.New(slog.DiscardHandler))
	n.Document.Config = cloudinit.Alone()
	n.Document.Config.Secret = "seven small boats left harbour today"
	n.Document.Config.Firewall.Enabled = false // it would be this machine's
	n.Servers.OpenDB = func(context.Context) (*pgx.Conn, error) { return nil, errDown }
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errDown }
	n.Journal = n.NewJournal(node.Identity{UUID: id, Hostname: host, Name: identity.NodeName(host, id), Advertise: address})
	n.Journal.Steps[node.Become] = engine.Stamp{State: engine.Done, At: time.Now().UTC()}
	must(n.MakeStateDir())
	must(engine.Ensure(t.Context(), n.ConsulConfig(nil)))
	w := &wanNode{Node: n, t: t, memory: Memory{askedAgain: true}}
	p.Init = w
	must(w.Start(t.Context(), "consul"))
	t.Cleanup(func() { w.Stop(context.Background(), "") })
	w.pass()
	return w
}

// pass makes the part of a pass that Consul is enough for.
func (w *wanNode) pass() error {
	w.t.Helper()
	p, err := newPass(w.t.Context(), w.Node, &w.memory, stepTime)
	if err != nil {
		return err
	}
	w.last = p
	consulsPart := nodetest.Only(w.t, Phase, "registration", "wan", "members")
	consulsPart.GoOn = false
	_, err = p.runner().Run(w.t.Context(), consulsPart)
	return errors.Join(p.View.WAN.Err, err)
}

// eventually makes passes until all is as wanted.
func eventually(t *testing.T, what string, nodes []*wanNode, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
	for {
		var said []string
		for _, n := range nodes {
			if err := n.pass(); err != nil {
				said = append(said, n.Identity().Hostname+": "+err.Error())
			}
		}
		if is() {
			return
		}
		if time.Now().After(deadline) {
			for _, n := range nodes {
				d := n.last.Decision
				said = append(said, fmt.Sprintf("%s: members %v, refused %v, keeps out %q, departed %v", n.Identity().Hostname, d.Members, d.Refused, d.KeepsOut, d.Departed))
			}
			t.Fatalf("not %s:\n%s", what, strings.Join(said, "\n"))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// decided is the decision of the node's last pass.
func (w *wanNode) decided() Decision { return w.last.Decision }

// refused says why the mesh refused the node; "" where it did not.
func (w *wanNode) refused() string { return w.last.View.refusal() }

func (w *wanNode) knows(others ...*wanNode) bool {
	members := w.decided().Members
	if len(members) != len(others) {
		return false
	}
	for _, o := range others {
		if _, err := memberNamed(members, o.Identity().Hostname); err != nil {
			return false
		}
	}
	return true
}

// alone says whether nobody else lives in the node's WAN.
func (w *wanNode) alone() bool {
	c, err := w.Servers.Consul(w.t.Context())
	if err != nil {
		return false
	}
	wan, err := c.WANMembers(w.t.Context())
	living := 0
	for _, m := range wan {
		if m.Alive {
			living++
		}
	}
	return err == nil && living == 1
}

// join is what Consul does at its start with the peers of the document; they
// cannot be in the document here, where all addresses are this machine's own.
func (w *wanNode) join(to *wanNode) {
	w.t.Helper()
	c, err := w.Servers.Consul(w.t.Context())
	if err == nil {
		err = c.JoinedWAN([]string{to.Identity().Advertise}).Apply(w.t.Context())
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestWhoIsInTheMesh is about who is taken in, refused and let go, between real
// Consuls. Each part builds on the ones before.
func TestWhoIsInTheMesh(t *testing.T) {
	if os.Getenv("XIVO_CONSUL") == "" {
		t.Skip("needs Consul: `make test` sets XIVO_CONSUL")
	}
	if !ownNetwork(t) {
		return
	}
	ports := wanPorts{server.FreePort(t), server.FreePort(t), server.FreePort(t)}
	a := startNode(t, ports, 1, "16.03", uuid.New())
	b := startNode(t, ports, 2, "16.03", uuid.New())
	part := func(name string, f func(*testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}
	both := []*wanNode{a, b}

	part("two nodes take each other in", func(t *testing.T) {
		b.join(a)
		eventually(t, "both", both, func() bool { return a.knows(b) && b.knows(a) })
	})

	part("a newcomer of another version is told why it is refused, and leaves the WAN", func(t *testing.T) {
		c := startNode(t, ports, 3, "16.04", uuid.New())
		c.join(a)
		eventually(t, "out", []*wanNode{a, c}, func() bool { return c.refused() != "" && c.alone() })
		if !strings.Contains(c.refused(), "runs XiVO 16.04, node1 runs 16.03") || c.decided().KeepsOut != c.refused() || !a.knows(b) {
			t.Errorf("its refusal is %q, it keeps out for %q; node 1 knows %v", c.refused(), c.decided().KeepsOut, a.decided().Members)
		}
		// Until it is asked again.
		c.memory.askedAgain = false
		eventually(t, "asked again", []*wanNode{c}, func() bool { return c.decided().KeepsOut == "" && c.memory.askedAgain })
	})

	part("a copy with the UUID of a member is refused, and leaves the WAN; the member stays", func(t *testing.T) {
		c := startNode(t, ports, 4, "16.03", b.Identity().UUID)
		c.join(b)
		eventually(t, "out", []*wanNode{a, b, c}, func() bool { return c.refused() != "" && c.alone() })
		if !strings.Contains(c.refused(), "has the UUID of node2") || c.decided().KeepsOut != c.refused() || !a.knows(b) || !b.knows(a) {
			t.Errorf("its refusal is %q, it keeps out for %q; node 1 knows %v, node 2 %v", c.refused(), c.decided().KeepsOut, a.decided().Members, b.decided().Members)
		}
	})

	part("who leaves is gone for those that were away, too, and may come back", func(t *testing.T) {
		c := startNode(t, ports, 5, "16.03", uuid.New())
		c.join(a)
		eventually(t, "three", []*wanNode{a, b, c}, func() bool { return a.knows(b, c) && b.knows(a, c) && c.knows(a, b) })
		api, err := a.Servers.Consul(t.Context())
		if err == nil { // the others are away, as it were
			err = tellDeparted(t.Context(), api, "", c.Identity().UUID, time.Now().Add(time.Hour).UTC())
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "two", []*wanNode{a, b, c}, func() bool { return a.knows(b) && b.knows(a) && c.knows() && c.alone() })

		// Somebody's document still names it: that must not end its Consul again and again.
		process := c.cmd
		a.join(c)
		eventually(t, "told", []*wanNode{a, b, c}, func() bool {
			return strings.Contains(strings.Join(c.decided().Notices, "\n"), "still has this node")
		})
		if c.cmd != process || !a.knows(b) || !c.knows() {
			t.Errorf("Consul was restarted: %v; node 1 knows %v, node 5 %v", c.cmd != process, a.decided().Members, c.decided().Members)
		}

		// The clock of the one that said it is an hour ahead of ours.
		if err := registerAgain(t.Context(), c.Node); err != nil {
			t.Fatal(err)
		}
		c.join(a)
		eventually(t, "three again", []*wanNode{a, b, c}, func() bool { return a.knows(b, c) && b.knows(a, c) && c.knows(a, b) })
	})
}
