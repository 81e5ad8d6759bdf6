package machine_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// serverRoot is an unpacked Debian root to boot; it is not written to.
func serverRoot(t *testing.T) string {
	root := os.Getenv("XIVO_SERVER_ROOT")
	if os.Getenv("XIVO_LAB") == "" || root == "" || os.Geteuid() != 0 {
		t.Skip("needs root, XIVO_LAB=1 and XIVO_SERVER_ROOT")
	}
	return root
}

// boot starts a machine on a throw-away layer over root.
func boot(ctx context.Context, root string, network machine.Network) (*machine.Machine, error) {
	s, err := machine.NewSandbox(ctx)
	if err != nil {
		return nil, err
	}
	for _, argv := range [][]string{
		{"mkdir", "/run/layer"},
		{"mount", "-t", "tmpfs", "tmpfs", "/run/layer"},
		{"mkdir", "/run/layer/upper", "/run/layer/work", "/run/layer/root"},
		{"mount", "-t", "overlay", "overlay", "-o", "lowerdir=" + root + ",upperdir=/run/layer/upper,workdir=/run/layer/work", "/run/layer/root"},
		{"ip", "link", "add", "br0", "type", "bridge"},
		{"ip", "address", "add", "10.77.0.1/24", "dev", "br0"},
		{"ip", "link", "set", "br0", "up"},
	} {
		if err := s.Run(ctx, argv...); err != nil {
			s.Close()
			return nil, err
		}
	}
	m := &machine.Machine{
		Sandbox: s, Name: "trial", Root: "/run/layer/root", Network: network,
		BootArgs: []string{"cloud-init=disabled", "systemd.mask=networking.service"},
	}
	if err := m.Start(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return m, nil
}

// hang is what is taken for one, on a machine that may be busy with other things.
const hang = 15 * time.Minute

func TestMachineBootsRunsCommandsAndPowersOff(t *testing.T) {
	root := serverRoot(t)
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	m, err := boot(ctx, root, machine.Network{
		Uplink: true,
		Veth: &machine.Veth{Name: "eth0", Peer: "trial-eth0", Bridge: "br0",
			Address: netip.MustParsePrefix("10.77.0.2/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Sandbox.Close() // a second time, or after a failure
	failed, err := m.WaitRunning(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(failed) != 0 {
		t.Errorf("failed units: %v\n%s", failed, m.Console())
	}

	for _, tc := range []struct {
		name string
		cmd  *exec.Cmd
		want string
	}{
		{"the first process is systemd", m.Command(ctx, "cat", "/proc/1/comm"), "systemd\n"},
		{"commands run as root in /", m.Command(ctx, "sh", "-c", "id -u; pwd; echo $HOME"), "0\n/\n/root\n"},
		{"input reaches a command", withInput(m.Command(ctx, "cat"), "hello"), "hello"},
		{"the host's environment does not", m.Command(ctx, "sh", "-c", "echo $XIVO_LAB"), "\n"},
		{"the root is its own", m.Command(ctx, "ls", "/run/layer"), ""},
		{"it is reached over the bridge", m.Sandbox.Command(ctx, "sh", "-c", "timeout 5 bash -c 'head -c4 </dev/tcp/10.77.0.2/22'"), "SSH-"},
		{"it may configure its network", m.Command(ctx, "sh", "-c", "ip link add v0 type veth peer name v1 && echo yes"), "yes\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out, _ := tc.cmd.Output()
			if string(out) != tc.want {
				t.Errorf("got %q, want %q", out, tc.want)
			}
		})
	}

	t.Run("the console is read, however much is printed", func(t *testing.T) {
		print := m.Command(ctx, "sh", "-c", "yes 'a line of a unit' | head -n 50000 >/dev/console; echo the last line >/dev/console")
		if out, err := print.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for !strings.Contains(m.Console(), "the last line") {
			if ctx.Err() != nil {
				t.Fatalf("what it printed did not come: %q", m.Console())
			}
			time.Sleep(10 * time.Millisecond)
		}
	})

	t.Run("a cancelled command ends", func(t *testing.T) {
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := m.Command(short, "sh", "-c", "sleep 4711; true").Run(); err == nil {
			t.Error("no error")
		}
		if out, _ := m.Command(ctx, "pgrep", "-f", "[s]leep 4711").Output(); len(out) != 0 {
			t.Errorf("still runs in the machine: %s", out)
		}
	})

	t.Run("a reboot is survived", func(t *testing.T) {
		bootID := func() string {
			out, _ := m.Command(ctx, "cat", "/proc/1/stat").Output()
			if i := strings.LastIndexByte(string(out), ')'); i > 0 {
				return strings.Fields(string(out[i:]))[20] // start time
			}
			return ""
		}
		before := bootID()
		// A command in flight neither holds the machine back nor outlives it.
		inFlight := m.Command(ctx, "sleep", "4712")
		if err := inFlight.Start(); err != nil {
			t.Fatal(err)
		}
		m.Command(ctx, "systemctl", "reboot").Run()
		if err := inFlight.Wait(); err == nil || ctx.Err() != nil {
			t.Errorf("the command in flight: %v", err)
		}
		for now := before; now == "" || now == before; now = bootID() {
			if ctx.Err() != nil {
				t.Fatal(ctx.Err(), m.Console())
			}
			time.Sleep(100 * time.Millisecond)
		}
		if _, err := m.WaitRunning(ctx); err != nil {
			t.Fatal(err)
		}
	})

	if err := m.Poweroff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Command(ctx, "true").Run(); err == nil {
		t.Error("a command runs in a machine that is off")
	}
	if err := m.Start(ctx); err != nil {
		t.Errorf("start it again: %v", err)
	}
	if err := m.Poweroff(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Sandbox.Close(); err != nil {
		t.Error(err)
	}
}

func withInput(cmd *exec.Cmd, s string) *exec.Cmd {
	cmd.Stdin = strings.NewReader(s)
	return cmd
}

func TestMachineThatCannotBootSaysWhy(t *testing.T) {
	serverRoot(t)
	s, err := machine.NewSandbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m := &machine.Machine{Sandbox: s, Name: "empty", Root: t.TempDir()}
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	err = m.Start(ctx)
	if err == nil {
		_, err = m.WaitRunning(ctx)
	}
	if err == nil || !strings.Contains(err.Error(), "OS root directory") {
		t.Errorf("got %v, want what systemd-nspawn said", err)
	}
	if ctx.Err() != nil {
		t.Error("noticed only by the deadline")
	}
}

// trace is what would be left on the host if something were.
type trace struct {
	Namespaces []string // of the sandbox
	Cgroups    []string
}

// TestNothingRemainsAfterSIGKILL kills a process that has a machine running and
// looks for what it had.
func TestNothingRemainsAfterSIGKILL(t *testing.T) {
	root := serverRoot(t)
	before := hostState(t)

	victim := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$")
	victim.Env = append(os.Environ(), "XIVO_TEST_VICTIM="+root)
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var had trace
	if err := json.Unmarshal(line, &had); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if left := remains(had); len(left) < 5 {
		t.Fatalf("while it runs, only this is seen: %v", left)
	}

	victim.Process.Kill()
	victim.Wait()
	var left []string
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if left = remains(had); len(left) == 0 {
			break
		}
	}
	if len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if after := hostState(t); after != before {
		t.Errorf("the host changed:\n%s\nwas:\n%s", after, before)
	}
}

// TestVictim is not a test: it is the process that gets killed.
func TestVictim(t *testing.T) {
	root := os.Getenv("XIVO_TEST_VICTIM")
	if root == "" {
		t.Skip("the victim of TestNothingRemainsAfterSIGKILL")
	}
	m, err := boot(t.Context(), root, machine.Network{Uplink: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	var had trace
	for _, kind := range []string{"mnt", "net", "pid"} {
		link, err := os.Readlink(m.Sandbox.Namespace(kind))
		if err != nil {
			t.Fatal(err)
		}
		had.Namespaces = append(had.Namespaces, link)
	}
	had.Cgroups = m.Sandbox.Cgroups()
	json.NewEncoder(os.Stdout).Encode(had)
	select {}
}

// remains lists the processes in the namespaces and the control groups.
func remains(had trace) (left []string) {
	for _, kind := range []string{"mnt", "net", "pid"} {
		links, _ := filepath.Glob("/proc/[0-9]*/ns/" + kind)
		for _, link := range links {
			target, _ := os.Readlink(link)
			for _, ns := range had.Namespaces {
				if target == ns {
					left = append(left, link+" in "+ns)
				}
			}
		}
	}
	for _, dir := range had.Cgroups {
		// nspawn copies groups between hierarchies: look in all.
		found, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(dir))
		left = append(left, found...)
		if _, err := os.Stat(dir); err == nil {
			left = append(left, dir)
		}
	}
	return left
}

// hostState is what a machine must not change on the host.
func hostState(t *testing.T) string {
	t.Helper()
	var state bytes.Buffer
	for _, name := range []string{"/proc/self/mountinfo", "/proc/sys/net/ipv4/ip_forward", "/proc/net/dev_mcast"} {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		state.Write(raw)
	}
	for _, pattern := range []string{"/run/netns/*", "/run/systemd/nspawn/*"} {
		names, _ := filepath.Glob(pattern)
		state.WriteString(strings.Join(names, "\n"))
	}
	return state.String()
}
