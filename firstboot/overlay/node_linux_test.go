package overlay_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// The test program is also what runs in the machines of a test: a node, an echo, or
// who talks to one. All of them end with the end of their standard input, so that they
// do with the test, however it ends.
func TestMain(m *testing.M) {
	roles := map[string]func() error{"node": runNode, "echo": runEcho, "talk": runTalk, "strange": runStrange, "device": runDevice, "moving": runMoving}
	role, ok := roles[os.Getenv("OVERLAY_ROLE")]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// nodeConfig is what a test gives a node.
type nodeConfig struct {
	Dir        string
	Secret     string
	UUID       uuid.UUID
	Address    overlay.Address
	Host       string
	Version    string
	Boot       string
	Registered uint64
	Peers      []string
	// Mode is that of an overlay where it is "".
	Mode string
	// Silence is after which time a peer counts as silent; 0 is the service's own.
	Silence time.Duration
}

func rootOf(secret string) (r overlay.Root) {
	copy(r[:], secret)
	return r
}

// runNode is a node: what become leaves, the oneshot that sets the address, and the
// service. It answers `status`, `uapi` and `bury UUID`, a line each.
func runNode() error {
	var c nodeConfig
	if err := json.Unmarshal([]byte(os.Getenv("OVERLAY_CONFIG")), &c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := overlay.KeyPair(c.Dir).Apply(ctx); err != nil {
		return err
	}
	key, err := overlay.ReadKey(c.Dir)
	if err != nil {
		return err
	}
	if c.Mode == "" {
		c.Mode = overlay.ModeOverlay
		if err := overlay.Addressed(c.Address).Apply(ctx); err != nil {
			return err
		}
	}
	s, err := overlay.New(overlay.Config{
		Dir: c.Dir, Root: rootOf(c.Secret), Key: key, Address: c.Address, Mode: c.Mode,
		UUID: c.UUID, Host: c.Host, Version: c.Version, Boot: c.Boot, Registered: c.Registered, Peers: c.Peers,
		Log:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Pace: overlay.Pace{Look: time.Second, Next: time.Second, Silence: c.Silence},
	})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	lines := make(chan string)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
	}()
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("the service ended: %v", err)
		case line, ok := <-lines:
			if !ok {
				return nil
			}
			what, rest, _ := strings.Cut(line, " ")
			var told any
			switch what {
			case "status":
				told = s.Status()
			case "bury":
				told = fmt.Sprint(s.Bury(uuid.MustParse(rest)))
			case "uapi":
				told = uapi()
			}
			text, err := json.Marshal(told)
			if err != nil {
				return err
			}
			fmt.Println(string(text))
		}
	}
}

// uapi asks as `wg show` does.
func uapi() string {
	c, err := net.Dial("unix", "/run/wireguard/"+overlay.Interface+".sock")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	fmt.Fprint(c, "get=1\n\n")
	var b strings.Builder
	for in := bufio.NewScanner(c); in.Scan() && in.Text() != "errno=0"; {
		fmt.Fprintln(&b, in.Text())
	}
	return b.String()
}

func endWithStdin() {
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func runEcho() error {
	ln, err := net.Listen("tcp", os.Getenv("OVERLAY_AT"))
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go endWithStdin()
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go io.Copy(c, c)
	}
}

// runTalk has one connection, says each line of its input and prints what comes back.
func runTalk() error {
	c, err := net.DialTimeout("tcp", os.Getenv("OVERLAY_AT"), time.Minute)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		io.Copy(os.Stdout, c)
		os.Exit(2) // the connection ended
	}()
	_, err = io.Copy(c, os.Stdin)
	return err
}

// patience is for hangs.
const patience = 90 * time.Second

// process is one of a test's.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan string
	log string // what it wrote to standard error
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, out: make(chan string, 16)}
	var err error
	p.in, err = cmd.StdinPipe()
	check(t, err)
	out, err := cmd.StdoutPipe()
	check(t, err)
	stderr, err := os.CreateTemp(t.TempDir(), "log")
	check(t, err)
	defer stderr.Close()
	p.log = stderr.Name()
	cmd.Stderr = stderr
	check(t, cmd.Start())
	go func() {
		defer close(p.out)
		in := bufio.NewScanner(out)
		in.Buffer(nil, 1<<22)
		for in.Scan() {
			p.out <- in.Text()
		}
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			text, _ := os.ReadFile(p.log)
			t.Logf("%s said:\n%s", cmd.Args, text[max(0, len(text)-6000):])
		}
	})
	return p
}

// kill ends it as a crash does.
func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	p.cmd.Process.Kill()
	p.in.Close()
	p.cmd.Wait()
}

// line is the next one that it prints.
func (p *process) line(t *testing.T) string {
	t.Helper()
	select {
	case text, ok := <-p.out:
		if !ok {
			said, _ := os.ReadFile(p.log)
			t.Fatalf("it ended: %s", said)
		}
		return text
	case <-time.After(patience):
		t.Fatal("it says nothing")
	}
	return ""
}

// ask says a line and returns the answer.
func (p *process) ask(t *testing.T, line string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		said, _ := os.ReadFile(p.log)
		t.Fatalf("%v: %s", err, said)
	}
	return p.line(t)
}

// machine is a network namespace with an own /run, and in it perhaps a node.
type machine struct {
	hold *process
	node *process
	conf nodeConfig
}

// lan is a bridge in a namespace of its own.
type lan struct{ hold *process }

// newMachine makes one without a network. It goes with the process that holds it.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skipf("no TUN here: %v", err)
	}
	if err := exec.Command("unshare", "-n", "-m", "true").Run(); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	m := &machine{hold: start(t, exec.Command("unshare", "-n", "-m", "--propagation", "private",
		"sh", "-c", "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec cat"))}
	if got := m.hold.line(t); got != "ready" {
		t.Fatalf("the machine said %q", got)
	}
	return m
}

func newLAN(t *testing.T) *lan {
	t.Helper()
	m := newMachine(t)
	m.run(t, "ip", "link", "add", "br0", "type", "bridge")
	m.run(t, "ip", "link", "set", "br0", "up")
	return &lan{m.hold}
}

// command runs in the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", fmt.Sprint(m.hold.cmd.Process.Pid), "-n", "-m", "--"}, args...)...)
}

func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// plug gives a machine eth0 on the LAN, with that address.
func (l *lan) plug(t *testing.T, m *machine, address string) {
	t.Helper()
	bridge := (&machine{hold: l.hold})
	port := fmt.Sprintf("p%d", m.hold.cmd.Process.Pid)
	m.run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", fmt.Sprint(l.hold.cmd.Process.Pid))
	bridge.run(t, "ip", "link", "set", port, "master", "br0")
	bridge.run(t, "ip", "link", "set", port, "up")
	m.run(t, "ip", "addr", "add", address, "dev", "eth0")
	m.run(t, "ip", "link", "set", "eth0", "up")
}

// self runs this program in a role in the machine.
func (m *machine) self(t *testing.T, role string, env ...string) *process {
	t.Helper()
	program, err := os.Executable()
	check(t, err)
	cmd := m.command(program)
	cmd.Env = append(append(os.Environ(), "OVERLAY_ROLE="+role), env...)
	return start(t, cmd)
}

// boot starts the machine's node.
func (m *machine) boot(t *testing.T) {
	t.Helper()
	text, err := json.Marshal(m.conf)
	check(t, err)
	m.node = m.self(t, "node", "OVERLAY_CONFIG="+string(text))
}

const theSecret = "secret of the mesh, 32 bytes long"

// newNode is a machine on the LAN with a node that is not started.
func (l *lan) newNode(t *testing.T, host, address string, peers ...string) *machine {
	t.Helper()
	m := newMachine(t)
	l.plug(t, m, address+"/24")
	m.conf = nodeConfig{
		Dir: filepath.Join(t.TempDir(), host), Secret: theSecret, UUID: uuid.New(), Host: host,
		Version: "16.03", Boot: "boot 1 of " + host, Registered: 1, Peers: peers,
	}
	var err error
	m.conf.Address, err = overlay.Draw(m.conf.UUID, overlay.DefaultRange)
	check(t, err)
	return m
}

func (m *machine) status(t *testing.T) overlay.Status {
	t.Helper()
	var s overlay.Status
	check(t, json.Unmarshal([]byte(m.node.ask(t, "status")), &s))
	return s
}

// peer is another node as this one sees it.
func (m *machine) peer(t *testing.T, other *machine) (overlay.PeerStatus, bool) {
	t.Helper()
	for _, p := range m.status(t).Peers {
		if p.UUID == other.conf.UUID {
			return p, true
		}
	}
	return overlay.PeerStatus{}, false
}

// until waits for something to be so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(30 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// joined waits until each of them has shaken hands with all others, and gossips.
func joined(t *testing.T, all ...*machine) {
	t.Helper()
	for _, m := range all {
		for _, o := range all {
			if m != o {
				until(t, m.conf.Host+" knows "+o.conf.Host+", with a handshake", func() bool {
					p, ok := m.peer(t, o)
					return ok && p.Handshake >= 0 && p.Gossip
				})
			}
		}
	}
}

// talk opens a TCP connection through the overlay.
func (m *machine) talk(t *testing.T, to *machine) *process {
	t.Helper()
	at := "OVERLAY_AT=" + netip.AddrPortFrom(to.conf.Address.Address, 7000).String()
	echo := to.self(t, "echo", at)
	if got := echo.line(t); got != "ready" {
		t.Fatal(got)
	}
	talk := m.self(t, "talk", at)
	if got := talk.line(t); got != "ready" {
		t.Fatal(got)
	}
	return talk
}

func says(t *testing.T, p *process, text string) {
	t.Helper()
	if got := p.ask(t, text); got != text {
		t.Fatalf("said %q, and heard %q", text, got)
	}
}
