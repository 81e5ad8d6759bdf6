package firewall_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
)

// The test program is also what runs in the machines of a test. What goes on ends
// with the end of its standard input, so that it does with the test.
func TestMain(m *testing.M) {
	roles := map[string]func() error{"firewall": runFirewall, "listen": runListen, "try": runTry, "talk": runTalk, "watch": runWatch}
	role, ok := roles[os.Getenv("FIREWALL_ROLE")]
	if !ok {
		os.Exit(m.Run())
	}
	if err := role(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// settings is what a test has the firewall set to.
type settings struct {
	Network firewall.Network
	Doors   firewall.Doors
	Absent  bool
	Apply   bool
}

// answer is what came of it.
type answer struct {
	Applied string   // the error
	Diff    []string // after
	Gaps    []string
	Error   string
}

func runFirewall() error {
	var s settings
	if err := json.Unmarshal([]byte(os.Getenv("FIREWALL_SETTINGS")), &s); err != nil {
		return err
	}
	r := firewall.Static(s.Network, s.Doors)
	if s.Absent {
		r = firewall.Absent()
	}
	return json.NewEncoder(os.Stdout).Encode(set(r, s.Apply))
}

func set(r engine.Resource, apply bool) answer {
	var a answer
	ctx := context.Background()
	if apply {
		if err := r.Apply(ctx); err != nil {
			a.Applied = err.Error()
		}
	}
	var err error
	if a.Diff, err = r.Diff(ctx); err == nil {
		a.Gaps, err = firewall.Gaps(ctx)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// runListen answers at ports, TCP and UDP, in both families, with what it hears. A
// line of input is answered with the sources of datagrams so far.
func runListen() error {
	var mu sync.Mutex
	var sources []string
	for _, port := range strings.Split(os.Getenv("FIREWALL_PORTS"), ",") {
		for _, at := range []string{"0.0.0.0:", "[::]:"} {
			family := map[string]string{"0": "4", "[": "6"}[at[:1]]
			ln, err := net.Listen("tcp"+family, at+port)
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go io.Copy(c, c)
				}
			}()
			u, err := listenUDP(family, at+port)
			if err != nil {
				return err
			}
			go func() {
				data, control := make([]byte, 5000), make([]byte, 100)
				for {
					n, c, _, from, err := u.ReadMsgUDP(data, control)
					if err != nil {
						return
					}
					mu.Lock()
					sources = append(sources, from.IP.String())
					mu.Unlock()
					u.WriteMsgUDP(data[:n], sameAddress(control[:c]), from)
				}
			}()
		}
	}
	fmt.Println("ready")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		mu.Lock()
		fmt.Println(strings.Join(sources, " "))
		mu.Unlock()
	}
	return nil
}

// listenUDP has the kernel tell to which address an IPv4 datagram came.
func listenUDP(family, at string) (*net.UDPConn, error) {
	a, err := net.ResolveUDPAddr("udp"+family, at)
	if err != nil {
		return nil, err
	}
	u, err := net.ListenUDP("udp"+family, a)
	if err != nil || family == "6" {
		return u, err
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var refused error
	err = raw.Control(func(fd uintptr) {
		refused = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	})
	return u, errors.Join(err, refused)
}

// sameAddress makes of what the kernel told the wish to answer from there, by
// whatever interface.
func sameAddress(control []byte) []byte {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 {
		return nil
	}
	var info unix.Inet4Pktinfo
	copy(info.Spec_dst[:], messages[0].Data[8:12])
	return unix.PktInfo4(&info)
}

// What becomes of a try.
const (
	answers = "answers"
	refused = "refused"
	nothing = "nothing"
)

// runTry tries all of FIREWALL_AT, "tcp 192.0.2.1:22" or "ping 192.0.2.1", and prints what comes of each.
func runTry() error {
	var targets []string
	if err := json.Unmarshal([]byte(os.Getenv("FIREWALL_AT")), &targets); err != nil {
		return err
	}
	patience, err := time.ParseDuration(os.Getenv("FIREWALL_PATIENCE"))
	if err != nil {
		return err
	}
	if err := become(); err != nil {
		return err
	}
	results := make([]string, len(targets))
	var wg sync.WaitGroup
	for i, target := range targets {
		network, at, _ := strings.Cut(target, " ")
		wg.Go(func() { results[i] = try(network, at, patience) })
	}
	wg.Wait()
	return json.NewEncoder(os.Stdout).Encode(results)
}

// become is another user for the rest of the process.
func become() error {
	var uid int
	fmt.Sscan(os.Getenv("FIREWALL_USER"), &uid)
	if uid == 0 {
		return nil
	}
	return syscall.Setuid(uid)
}

func try(network, at string, patience time.Duration) string {
	end := time.Now().Add(patience)
	message := []byte("hello")
	switch network {
	case "fragments":
		network, message = "udp", make([]byte, 4000)
	case "ping":
		network, message = "ip4:icmp", []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0} // an echo request, with its checksum
	}
	c, err := net.DialTimeout(network, at, patience)
	for err == nil && time.Now().Before(end) {
		step := end
		if network != "tcp" {
			step = time.Now().Add(200 * time.Millisecond) // sent again: it may have been lost
		}
		c.SetDeadline(step)
		if _, err = c.Write(message); err != nil {
			break
		}
		if _, err = c.Read(make([]byte, 5000)); err == nil {
			c.Close()
			return answers
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = nil
		}
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return refused
	case err == nil, errors.Is(err, syscall.EPERM): // EPERM: dropped on its way out
		return nothing
	}
	if slow, ok := errors.AsType[net.Error](err); ok && slow.Timeout() {
		return nothing
	}
	return err.Error()
}

// runTalk has one connection, says each line of its input and prints what comes back.
func runTalk() error {
	if err := become(); err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", os.Getenv("FIREWALL_AT"), patience)
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

// runWatch prints the destination of each IPv4 packet that comes by eth0.
func runWatch() error {
	const allIPv4 = 0x0008 // ETH_P_IP in the order of the network
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, allIPv4)
	if err != nil {
		return err
	}
	eth0, err := net.InterfaceByName("eth0")
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allIPv4, Ifindex: eth0.Index}); err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	for {
		packet := make([]byte, 2000)
		n, _, err := unix.Recvfrom(fd, packet, 0)
		if err != nil {
			return err
		}
		if n >= 20 {
			fmt.Println(netip.AddrFrom4([4]byte(packet[16:20])))
		}
	}
}

const (
	// patience is for hangs.
	patience = 30 * time.Second
	// silence is how long nothing must come, where the same answered before.
	silence = 1500 * time.Millisecond
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// process is one of a test's.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan string
	log string // what it wrote to standard error
}

func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, out: make(chan string, 1000)}
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
		for in := bufio.NewScanner(out); in.Scan(); {
			p.out <- in.Text()
		}
	}()
	t.Cleanup(p.kill)
	return p
}

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
			t.Fatalf("%s ended: %s", p.cmd.Args, said)
		}
		return text
	case <-time.After(patience):
		t.Fatalf("%s says nothing", p.cmd.Args)
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

func says(t *testing.T, p *process, text string) {
	t.Helper()
	if got := p.ask(t, text); got != text {
		t.Fatalf("said %q, and heard %q", text, got)
	}
}

// machine is a network namespace with an own /run, in which iptables has its lock.
type machine struct {
	hold *process
	path string // where commands are looked up first
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if err := exec.Command("unshare", "-n", "-m", "true").Run(); err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
	m := &machine{hold: start(t, exec.Command("unshare", "-n", "-m", "--propagation", "private",
		"sh", "-c", "mount -t tmpfs tmpfs /run && ip link set lo up && echo ready && exec cat"))}
	if got := m.hold.line(t); got != "ready" {
		t.Fatalf("the machine said %q", got)
	}
	// As a stranger would like it.
	m.run(t, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done; echo 1 >/proc/sys/net/ipv4/ip_forward")
	return m
}

// command runs in the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"-t", fmt.Sprint(m.hold.cmd.Process.Pid), "-n", "-m", "--"}, args...)...)
	cmd.Env = os.Environ()
	if m.path != "" {
		cmd.Env = append(cmd.Env, "PATH="+m.path+":"+os.Getenv("PATH"))
	}
	return cmd
}

func (m *machine) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs it once a line of words.
func (m *machine) ip(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		m.run(t, append([]string{"ip"}, strings.Fields(line)...)...)
	}
}

// self runs this program in a role in the machine.
func (m *machine) self(t *testing.T, role string, env ...string) *process {
	t.Helper()
	program, err := os.Executable()
	check(t, err)
	cmd := m.command(program)
	cmd.Env = append(append(cmd.Env, "FIREWALL_ROLE="+role), env...)
	return start(t, cmd)
}

// listen answers at these ports, in both families, TCP and UDP.
func (m *machine) listen(t *testing.T, ports ...int) *process {
	t.Helper()
	p := m.self(t, "listen", "FIREWALL_PORTS="+strings.ReplaceAll(strings.Trim(fmt.Sprint(ports), "[]"), " ", ","))
	if got := p.line(t); got != "ready" {
		t.Fatal(got)
	}
	return p
}

// set applies a firewall and wants it to be as it should be then.
func (m *machine) set(t *testing.T, s settings) answer {
	t.Helper()
	s.Apply = true
	a := m.ask(t, s)
	if a.Applied != "" || a.Error != "" || len(a.Diff) != 0 {
		t.Fatalf("set: %+v\n%s", a, m.rules(t))
	}
	return a
}

// ask has the answer to settings, applied or only compared.
func (m *machine) ask(t *testing.T, s settings) answer {
	t.Helper()
	return readAnswer(t, m.asking(t, s))
}

func (m *machine) asking(t *testing.T, s settings) *process {
	t.Helper()
	text, err := json.Marshal(s)
	check(t, err)
	return m.self(t, "firewall", "FIREWALL_SETTINGS="+string(text))
}

func readAnswer(t *testing.T, p *process) answer {
	t.Helper()
	var a answer
	check(t, json.Unmarshal([]byte(p.line(t)), &a))
	return a
}

// rules is what the kernel has, less the counters.
func (m *machine) rules(t *testing.T) string {
	t.Helper()
	return m.run(t, "iptables", "-S") + m.run(t, "ip6tables", "-S")
}

// wants is that a user of the machine gets this of all targets.
func (m *machine) wants(t *testing.T, want string, uid int, targets ...string) {
	t.Helper()
	text, err := json.Marshal(targets)
	check(t, err)
	wait := patience / 2
	if want == nothing {
		wait = silence
	}
	var got []string
	p := m.self(t, "try", "FIREWALL_AT="+string(text), "FIREWALL_PATIENCE="+wait.String(), fmt.Sprint("FIREWALL_USER=", uid))
	check(t, json.Unmarshal([]byte(p.line(t)), &got))
	for i, g := range got {
		if g != want {
			t.Errorf("%s, user %d: %s, want %s", targets[i], uid, g, want)
		}
	}
}

// at are these ports of hosts as targets.
func at(network string, ports []int, hosts ...string) []string {
	var targets []string
	for _, h := range hosts {
		for _, p := range ports {
			targets = append(targets, network+" "+net.JoinHostPort(h, fmt.Sprint(p)))
		}
	}
	return targets
}

// each runs a test with each of the back ends of iptables that are installed here.
func each(t *testing.T, test func(t *testing.T, path string)) {
	t.Parallel() // most of the time is silence
	found := false
	for _, backend := range []string{"legacy", "nft"} {
		multi, err := exec.LookPath("/usr/sbin/xtables-" + backend + "-multi")
		if err != nil {
			continue
		}
		found = true
		t.Run(backend, func(t *testing.T) {
			path := t.TempDir()
			for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore", "backend"} {
				check(t, os.Symlink(multi, filepath.Join(path, name)))
			}
			test(t, path)
		})
	}
	if !found {
		t.Skip("needs iptables: run `apt-get install iptables`")
	}
}

// site is a node, a neighbour on its LAN, and a member behind the interface of the
// mesh. The neighbour is also the default gateway, and the cloud.
type site struct{ node, neighbour, member *machine }

const (
	lanNode, lanNode6           = "192.0.2.1", "fd00:9::1"
	lanNeighbour, lanNeighbour6 = "192.0.2.66", "fd00:9::66"
	overNode, overNode6         = "100.88.3.4", "fd00:8::1"
	overMember                  = "100.88.9.9"
	cloud4, cloud6              = "169.254.169.254", "fd00:ec2::254"
)

func newSite(t *testing.T, path, through string) site {
	t.Helper()
	s := site{newMachine(t), newMachine(t), newMachine(t)}
	s.node.path = path
	plug := func(name string, m *machine, far string) {
		s.node.ip(t, fmt.Sprintf("link add %s type veth peer name %s netns %d", name, far, m.hold.cmd.Process.Pid), "link set "+name+" up")
		m.ip(t, "link set "+far+" up")
	}
	plug("eth0", s.neighbour, "eth0")
	s.node.ip(t, "addr add "+lanNode+"/24 dev eth0", "-6 addr add "+lanNode6+"/64 dev eth0 nodad")
	s.neighbour.ip(t, "addr add "+lanNeighbour+"/24 dev eth0", "-6 addr add "+lanNeighbour6+"/64 dev eth0 nodad",
		"addr add "+cloud4+"/32 dev lo", "-6 addr add "+cloud6+"/128 dev lo",
		"route add 100.88.0.0/16 via "+lanNode)
	s.node.ip(t, "route add default via "+lanNeighbour, "-6 route add default via "+lanNeighbour6)

	plug(through, s.member, through)
	s.node.ip(t, "addr add "+overNode+"/32 dev lo", "-6 addr add "+overNode6+"/64 dev "+through+" nodad",
		"route add 100.88.0.0/16 dev "+through+" src "+overNode)
	s.member.ip(t, "addr add "+overMember+"/32 dev lo", "-6 addr add fd00:8::9/64 dev "+through+" nodad",
		"route add "+overNode+" dev "+through+" src "+overMember, "route add 192.0.2.0/24 via "+overNode+" dev "+through+" onlink src "+overMember)
	for _, m := range []*machine{s.node, s.neighbour, s.member} {
		m.run(t, "sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done")
	}
	return s
}

// less is a list without those.
func less(all []int, those ...int) []int {
	return slices.DeleteFunc(slices.Clone(all), func(p int) bool { return slices.Contains(those, p) })
}
