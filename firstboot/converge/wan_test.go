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
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// meshNode is a node of which only Consul and the service of the mesh's network are real:
// enough to see who takes whom in, and who keeps out.
type meshNode struct {
	*node.Node
	t       *testing.T
	address string
	cmd     *exec.Cmd
	// stop ends the service; nil while it does not run.
	stop   func()
	memory Memory
	last   *Pass
}

// The init system of a node whose services are these two.
func (w *meshNode) Start(_ context.Context, service string) error {
	if service != OverlayUnit {
		w.cmd = exec.Command(os.Getenv("XIVO_CONSUL"), "agent", "-config-dir", w.Platform.Path(platform.ConsulConfigDir), "-bind", w.address)
		w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		return w.cmd.Start()
	}
	config, err := w.OverlayService()
	if err != nil {
		return err
	}
	s, err := overlay.New(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, run := range []func() error{func() error { return s.Run(ctx) }, func() error { return s.Control(ctx, w.OverlaySocket()) }} {
		all.Go(func() {
			if err := run(); err != nil {
				w.t.Errorf("the service of %s: %v", w.address, err)
			}
		})
	}
	w.stop = func() { cancel(); all.Wait() }
	return awaitOverlay(ctx, w.Node)
}

func (w *meshNode) Stop(_ context.Context, service string) error {
	if service == OverlayUnit {
		if w.stop != nil {
			w.stop()
			w.stop = nil
		}
		return nil
	}
	w.cmd.Process.Kill()
	w.cmd.Wait()
	return nil
}

func (w *meshNode) Restart(ctx context.Context, s string) error {
	w.Stop(ctx, s)
	return w.Start(ctx, s)
}
func (w *meshNode) Active(context.Context, string) (bool, error)         { return true, nil }
func (w *meshNode) SetEnvironment(context.Context, string, string) error { return nil }
func (w *meshNode) Environment(context.Context, string) (string, error)  { return "", nil }

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

// addressOf is the address of a node in the test's network.
func addressOf(number int) string { return fmt.Sprint("10.77.7.", number) }

// startNode starts a node that has become in direct mode, with these numbers as the peers
// of its document.
func startNode(t *testing.T, ports wanPorts, number int, version string, id uuid.UUID, peers ...int) *meshNode {
	t.Helper()
	address, host := addressOf(number), fmt.Sprint("node", number)
	// The path of a socket has 107 bytes at most, and t.TempDir the name of the test.
	root, err := os.MkdirTemp("", "node")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	p := &platform.Platform{Root: root}
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
	write("/proc/sys/kernel/random/boot_id", uuid.NewString())
	p, err = platform.Detect(p.Root)
	must(err)
	p.Traits.ConsulPerformance = true // the Consul that runs is a new one
	must(os.MkdirAll(filepath.Dir(p.Path(platform.CertificateFile)), 0o755))
	must(engine.Ensure(t.Context(), identity.Certificate(p, address)))
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
	n.Document.Config.Network = cloudinit.Network{Mode: cloudinit.NetworkDirect, Interface: "lo", Port: 9484}
	n.Document.Config.Advertise.Address = address // one of several there
	for _, p := range peers {
		n.Document.Config.Peers = append(n.Document.Config.Peers, addressOf(p))
	}
	n.Servers.OpenDB = func(context.Context) (*pgx.Conn, error) { return nil, errDown }
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errDown }
	n.Journal = n.NewJournal(node.Identity{UUID: id, Hostname: host, Name: identity.NodeName(host, id)})
	n.Journal.Steps[node.Become] = engine.Stamp{State: engine.Done, At: time.Now().UTC()}
	n.Journal.Steps[node.Settle] = n.Journal.Steps[node.Become]
	must(n.MakeStateDir())
	must(n.KeepDocument())
	must(n.CheckNetwork(t.Context()))
	must(engine.Ensure(t.Context(), n.OverlayKey()))
	must(n.TakeAddress(t.Context()))
	if got := n.Address(); got != address {
		t.Fatalf("it keeps the address %s, want %s", got, address)
	}
	must(engine.Ensure(t.Context(), n.ConsulConfig()))
	w := &meshNode{Node: n, t: t, address: address}
	p.Init = w
	t.Cleanup(func() { w.die() })
	must(w.Start(t.Context(), "consul"))
	must(w.Start(t.Context(), OverlayUnit))
	w.pass()
	return w
}

// die ends it as a power cut does.
func (w *meshNode) die() {
	w.Stop(context.Background(), OverlayUnit)
	w.Stop(context.Background(), "consul")
}

// pass makes the part of a pass that the two services are enough for.
func (w *meshNode) pass() error {
	w.t.Helper()
	p, err := newPass(w.t.Context(), w.Node, &w.memory, stepTime)
	if err != nil {
		return err
	}
	w.last = p
	theirPart := nodetest.Only(w.t, Phase, "wan", "members")
	theirPart.GoOn = false
	_, err = p.runner().Run(w.t.Context(), theirPart)
	return errors.Join(p.View.WAN.Err, p.View.Overlay.Err, err)
}

// eventually makes passes until all is as wanted.
func eventually(t *testing.T, what string, nodes []*meshNode, is func() bool) {
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
				said = append(said, fmt.Sprintf("%s: members %v, keeps out %q, notices %q", n.Identity().Hostname, d.Members, d.KeepsOut, d.Notices))
			}
			t.Fatalf("not %s:\n%s", what, strings.Join(said, "\n"))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// decided is the decision of the node's last pass.
func (w *meshNode) decided() Decision { return w.last.Decision }

func (w *meshNode) knows(others ...*meshNode) bool {
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

// wan says whether exactly these live in the node's WAN beside it.
func (w *meshNode) wan(others ...*meshNode) bool {
	c, err := w.Servers.Consul(w.t.Context())
	if err != nil {
		return false
	}
	living, err := livingOthers(w.t.Context(), c, w.Identity().Name)
	return err == nil && len(living) == len(others) && !slices.ContainsFunc(others, func(o *meshNode) bool {
		return !slices.ContainsFunc(living, func(m consul.Member) bool { return m.Datacenter == o.Identity().Name })
	})
}

// TestWhoIsInTheMesh is about who is taken in, refused and let go, in a network that an
// operator brought, between real Consuls. Each part builds on the ones before.
func TestWhoIsInTheMesh(t *testing.T) {
	if os.Getenv("XIVO_CONSUL") == "" {
		t.Skip("needs Consul: `make test` sets XIVO_CONSUL")
	}
	if !ownNetwork(t) {
		return
	}
	ports := wanPorts{server.FreePort(t), server.FreePort(t), server.FreePort(t)}
	a := startNode(t, ports, 1, "16.03", uuid.New())
	b := startNode(t, ports, 2, "16.03", uuid.New(), 1, 2) // itself among them: one document serves all
	part := func(name string, f func(*testing.T)) {
		if !t.Run(name, f) {
			t.FailNow()
		}
	}
	pair := []*meshNode{a, b}

	part("two nodes take each other in", func(t *testing.T) {
		eventually(t, "both", pair, func() bool { return a.knows(b) && b.knows(a) && a.wan(b) && b.wan(a) })
	})

	part("a newcomer of another version is told why it is refused, and is in no WAN", func(t *testing.T) {
		c := startNode(t, ports, 3, "16.04", uuid.New(), 1)
		eventually(t, "refused", []*meshNode{a, b, c}, func() bool { return c.decided().KeepsOut != "" })
		if why := c.decided().KeepsOut; !strings.Contains(why, "runs XiVO 16.04, node1 runs 16.03") || !c.knows() || !c.wan() || !a.knows(b) {
			t.Errorf("it keeps out for %q, with %v; node 1 knows %v", why, c.decided().Members, a.decided().Members)
		}
		c.die()
	})

	part("a copy with the UUID of a member is refused; the member stays", func(t *testing.T) {
		c := startNode(t, ports, 4, "16.03", b.Identity().UUID, 1)
		eventually(t, "refused", []*meshNode{a, b, c}, func() bool { return c.decided().KeepsOut != "" })
		if why := c.decided().KeepsOut; !strings.Contains(why, "has the UUID of node2") || !c.wan() || !a.knows(b) || !b.knows(a) || !a.wan(b) {
			t.Errorf("it keeps out for %q; node 1 knows %v, node 2 %v", why, a.decided().Members, b.decided().Members)
		}
		c.die()
	})

	c := startNode(t, ports, 5, "16.03", uuid.New(), 1)
	three := []*meshNode{a, b, c}
	whole := func() bool { return a.knows(b, c) && b.knows(a, c) && c.knows(a, b) && a.wan(b, c) && c.wan(a, b) }

	part("who leaves is gone for everybody, also where its service did not run, and may come back", func(t *testing.T) {
		eventually(t, "three", three, whole)
		c.Stop(t.Context(), OverlayUnit)
		if _, err := Leave(t.Context(), c.Node); c.stop == nil {
			t.Fatalf("its service was not started: %v", err)
		}
		eventually(t, "two", three, func() bool { return a.knows(b) && b.knows(a) && c.knows() && c.wan() && c.decided().Left })

		// Somebody brings it back into the WAN: that must not end its Consul again and again.
		process := c.cmd
		api, err := a.Servers.Consul(t.Context())
		if err == nil {
			err = api.JoinedWAN([]string{c.address}).Apply(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "told", three, func() bool {
			return strings.Contains(strings.Join(c.decided().Notices, "\n"), "still has this node")
		})
		if c.cmd != process || !a.knows(b) || !c.knows() {
			t.Errorf("Consul was restarted: %v; node 1 knows %v, node 5 %v", c.cmd != process, a.decided().Members, c.decided().Members)
		}

		if err := registerAgain(t.Context(), c.Node); err != nil {
			t.Fatal(err)
		}
		eventually(t, "three again", three, whole)
	})

	part("one that lives is not forgotten; one that died is, and stays out until a person takes it back", func(t *testing.T) {
		if _, _, err := Forget(t.Context(), a.Node, "node5"); err == nil || !strings.Contains(err.Error(), "is alive") {
			t.Fatalf("one that lives: %v", err)
		}
		c.die()
		if m, _, _ := Forget(t.Context(), a.Node, "node5"); m.UUID != c.Identity().UUID {
			t.Fatalf("forgotten: %v", m)
		}
		eventually(t, "two", pair, func() bool { return a.knows(b) && b.knows(a) })

		for _, service := range []string{"consul", OverlayUnit} {
			if err := c.Start(t.Context(), service); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "out", three, func() bool { return c.decided().Left && c.knows() && a.knows(b) && b.knows(a) })
		if err := registerAgain(t.Context(), c.Node); err != nil {
			t.Fatal(err)
		}
		eventually(t, "three again", three, whole)
	})
}
