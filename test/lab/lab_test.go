package lab

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// sleeper is set in a process that only starts a machine and waits to be killed.
const sleeper = "XIVO_LAB_SLEEPER"

func TestMain(m *testing.M) {
	if os.Getenv(sleeper) != "" {
		sleep()
	}
	os.Exit(m.Run())
}

func sleep() {
	ctx := context.Background()
	l, err := New(ctx, os.Getenv("XIVO_SERVER_ROOT"))
	if err == nil {
		_, err = l.Start(ctx, Node{Name: "victim", Address: netip.MustParseAddr("10.77.0.11")})
	}
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("up\n")
	select {}
}

func needsLab(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" {
		t.Skip("boots machines: run make test")
	}
}

func TestNothingOfALabSurvivesAKill(t *testing.T) {
	needsLab(t)
	run := NewRun()
	run.before = lookAtHost(t.Context())
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), sleeper+"=1", run.Environment())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	line, _ := bufio.NewReader(out).ReadString('\n')
	if strings.TrimSpace(line) != "up" {
		t.Fatalf("the machine did not start: %s", line)
	}
	during, err := run.Traces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	traces := strings.Join(during, "\n") + "\n"
	for _, trace := range []string{"control group ", " systemd-nspawn\n", " systemd\n"} {
		if !strings.Contains(traces, trace) {
			t.Errorf("a running machine does not show %q in the traces of its run:\n%s", trace, traces)
		}
	}
	if others, err := NewRun().Traces(t.Context()); err != nil || len(others) > 0 {
		t.Errorf("a run that made nothing sees the machine of another: %v %v", others, err)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	left, err := run.Leftovers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func TestRunSeesWhatItsChildrenLeave(t *testing.T) {
	run := NewRun()
	start := func(environment ...string) *exec.Cmd {
		cmd := exec.Command("cat")
		cmd.Env = environment
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		return cmd
	}
	ours := start(run.Environment())
	start(NewRun().Environment())
	start()
	got, err := run.Traces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{fmt.Sprintf("process %d cat", ours.Process.Pid)}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRunSeesOnlyWhatWasNotThereBefore(t *testing.T) {
	before := host{"mount": {"/run/lab of tmpfs (tmpfs)"}}
	now := host{
		"mount":          {"/run/lab of tmpfs (tmpfs)", "/run/lab/a of tmpfs (tmpfs)"},
		"ip6tables-save": {"-A INPUT -j XIVO-MESH"}, // which could not be run before
	}
	if got, want := now.since(before), []string{"mount /run/lab/a of tmpfs (tmpfs)"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := (host{}).since(before); len(got) > 0 {
		t.Errorf("what cannot be looked at any more is told as left: %q", got)
	}
}

func TestFirewallRulesAreOursAlone(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script := "#!/bin/sh\necho '*filter'; echo '-A FORWARD -j DOCKER-USER'; echo '-A INPUT -j XIVO-MESH'; exit $EXIT\n"
	if err := os.WriteFile(filepath.Join(dir, "iptables-save"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("EXIT", "0")
	if got, err := firewallRules(t.Context(), "iptables-save"); err != nil || !slices.Equal(got, []string{"-A INPUT -j XIVO-MESH"}) {
		t.Errorf("got %q, %v", got, err)
	}
	t.Setenv("EXIT", "1")
	if _, looked := lookAtHost(t.Context())["iptables-save"]; looked {
		t.Error("a command that fails counts as a look")
	}
}

func TestMachineHasWhatItsSeedSays(t *testing.T) {
	needsLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), Hang)
	defer cancel()
	l, err := New(ctx, os.Getenv("XIVO_SERVER_ROOT"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := l.Start(ctx, Node{Name: "seeded", Address: netip.MustParseAddr("10.77.0.42")})
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(ctx, "its address and its host name", func(ctx context.Context) (bool, error) {
		out, err := m.Run(ctx, "sh", "-c", "hostname; ip -brief -4 address show dev eth0")
		return strings.HasPrefix(out, "seeded\n") && strings.Contains(out, "10.77.0.42/24"), err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = Wait(ctx, "ssh to answer in the lab's network", func(ctx context.Context) (bool, error) {
		conn, err := l.Dial(ctx, "tcp", "10.77.0.42:22")
		if err != nil {
			return false, err
		}
		return true, conn.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFirstPartition(t *testing.T) {
	disk := make([]byte, 1024)
	disk[446+8], disk[446+9] = 0x00, 0x08 // sector 2048
	disk[510], disk[511] = 0x55, 0xaa
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := firstPartition(name); err != nil || got != 1<<20 {
		t.Errorf("got %d, %v, want 1 MiB", got, err)
	}
	if err := os.WriteFile(name, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := firstPartition(name); err == nil {
		t.Error("a disk without a partition table was taken")
	}
}

func TestShellWithoutMachinesSaysWhatStartsThem(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "make demo KEEP=1") {
		t.Errorf("got %v", err)
	}
}

func TestPublishedShellsAreFoundOnlyWhilePublished(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	place, err := Reserve()
	if err != nil {
		t.Fatal(err)
	}
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "not up yet") {
		t.Errorf("before there are machines: %v", err)
	}
	if err := place.Announce(map[string][]string{"1": {"/nonexistent"}}); err != nil {
		t.Fatal(err)
	}
	if err := Shell("2"); err == nil || !strings.Contains(err.Error(), "there is no node 2") {
		t.Errorf("another node: %v", err)
	}
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("that node: %v", err)
	}
	if _, err := Reserve(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("two published at once: %v", err)
	}
	place.Release()
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "make demo KEEP=1") {
		t.Errorf("released: %v", err)
	}
}
