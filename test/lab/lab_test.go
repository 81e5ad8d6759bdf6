package lab

import (
	"bufio"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
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
	before, err := TakeFootprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), sleeper+"=1")
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
	during, err := TakeFootprint(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(during) <= len(before) {
		t.Error("a running machine does not show in the footprint: the check is blind")
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	left, err := before.Leftovers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

func TestMachineHasWhatItsSeedSays(t *testing.T) {
	needsLab(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
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
	if err := os.MkdirAll(filepath.Join(os.Getenv("XDG_CACHE_HOME"), "packer-plugin-xivo"), 0o755); err != nil {
		t.Fatal(err)
	}
	release, err := Publish(map[string][]string{"1": {"/nonexistent"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := Shell("2"); err == nil || !strings.Contains(err.Error(), "there is no node 2") {
		t.Errorf("another node: %v", err)
	}
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "/nonexistent") {
		t.Errorf("that node: %v", err)
	}
	if _, err := Publish(nil); err == nil {
		t.Error("two published at once")
	}
	release()
	if err := Shell("1"); err == nil || !strings.Contains(err.Error(), "make demo KEEP=1") {
		t.Errorf("released: %v", err)
	}
}
