package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

func TestRulesOfAPolicy(t *testing.T) {
	tests := []struct {
		name    string
		allowed []string
		want    []string
		wantErr string
	}{
		{name: "nobody but loopback", want: []string{"-i lo -j RETURN", "-p tcp -m tcp --dport 8300 -j DROP", "-p udp -m udp --dport 8302 -j DROP"}},
		{
			name:    "sorted, masked, each once",
			allowed: []string{"192.168.1.2", "10.1.2.3/8", "192.168.1.2/32"},
			want: []string{
				"-i lo -j RETURN", "-s 10.0.0.0/8 -j RETURN", "-s 192.168.1.2/32 -j RETURN",
				"-p tcp -m tcp --dport 8300 -j DROP", "-p udp -m udp --dport 8302 -j DROP",
			},
		},
		{name: "a host name is refused", allowed: []string{"xivo-a"}, wantErr: `firewall: "xivo-a" is not an IPv4 address or prefix`},
		{name: "IPv6 is refused", allowed: []string{"fe80::1"}, wantErr: `firewall: "fe80::1" is not an IPv4 address or prefix`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Policy{Allowed: tt.allowed, Ports: []int{8300}, UDP: []int{8302}}.rules()
			if msg := fmt.Sprint(err); tt.wantErr != "" && msg != tt.wantErr || tt.wantErr == "" && err != nil {
				t.Fatalf("error %v, want %q", err, tt.wantErr)
			}
			for i := range got {
				got[i] = strings.TrimPrefix(got[i], "-A XIVO-MESH ")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("rules (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAnEmptyAnswerIsAnError(t *testing.T) {
	f := chain{run: func(context.Context, string, string, ...string) (string, error) { return "", nil }}
	if _, err := f.Diff(t.Context()); err == nil {
		t.Error("Diff took an empty answer for an empty firewall")
	}
}

func TestMissingIptablesSaysWhatToInstall(t *testing.T) {
	_, err := run(t.Context(), "", "iptables-that-nobody-has")
	if !errors.Is(err, exec.ErrNotFound) && !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "apt-get install iptables") {
		t.Errorf("error %v, want one that says what to install", err)
	}
}

// The rest is tried on the real iptables, in a network namespace of its own.
func TestRulesInTheKernel(t *testing.T) {
	iptables := realIptables(t)
	f := chain{MeshPolicy([]string{"10.0.0.2", "10.0.0.1"}), iptables}
	others := "-A INPUT -p udp -m udp --dport 5060 -j DROP"
	if _, err := iptables(t.Context(), "", "iptables", strings.Fields(others)...); err != nil {
		t.Fatal(err)
	}

	converge(t, f)
	converge(t, f) // again: nothing doubled
	if out := list(t, iptables); strings.Count(out, jump) != 1 || !strings.Contains(out, others) {
		t.Errorf("one jump and the rule of others expected:\n%s", out)
	}

	t.Run("a doubled jump is reduced to one", func(t *testing.T) {
		if _, err := iptables(t.Context(), "", "iptables", "-I", "INPUT", "-j", Chain); err != nil {
			t.Fatal(err)
		}
		converge(t, f)
	})
	t.Run("a rule in another place is put right", func(t *testing.T) {
		if _, err := iptables(t.Context(), "", "iptables", "-I", Chain, "-p", "tcp", "--dport", "9495", "-j", "DROP"); err != nil {
			t.Fatal(err)
		}
		converge(t, f)
	})
	t.Run("everybody may be allowed", func(t *testing.T) {
		converge(t, chain{MeshPolicy([]string{"0.0.0.0/0"}), iptables})
	})
	t.Run("a member that left is no longer allowed", func(t *testing.T) {
		converge(t, chain{MeshPolicy([]string{"10.0.0.1"}), iptables})
		if out := list(t, iptables); strings.Contains(out, "10.0.0.2") || !strings.Contains(out, others) {
			t.Errorf("10.0.0.2 is still there, or the rule of others is gone:\n%s", out)
		}
	})
}

func converge(t *testing.T, f engine.Resource) {
	t.Helper()
	if err := f.Apply(t.Context()); err != nil {
		t.Fatalf("apply: %v", err)
	}
	if diff, err := f.Diff(t.Context()); err != nil || diff != nil {
		t.Fatalf("after apply: %v, %v", diff, err)
	}
}

func list(t *testing.T, iptables command) string {
	t.Helper()
	out, err := iptables(t.Context(), "", "iptables", "-S")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// realIptables returns the iptables of the lab's Debian root, in a network
// namespace that lives as long as the test.
func realIptables(t *testing.T) command {
	t.Helper()
	root := os.Getenv("XIVO_SERVER_ROOT")
	if root == "" || os.Getuid() != 0 {
		t.Skip("needs root and a Debian root with iptables: set XIVO_SERVER_ROOT")
	}
	holder := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-c", "echo ready; exec cat")
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = holder.Wait()
	})
	if _, err := stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}

	return func(ctx context.Context, in, name string, args ...string) (string, error) {
		net := fmt.Sprintf("--net=/proc/%d/ns/net", holder.Process.Pid)
		cmd := exec.CommandContext(ctx, "nsenter", append([]string{net, "chroot", root, name}, args...)...)
		cmd.Stdin = strings.NewReader(in)
		var out, said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &said
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%s: %w: %s", name, err, said.String())
		}
		return out.String(), nil
	}
}
