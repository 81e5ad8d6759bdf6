package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// TestLive adopts a running XiVO that was never baked. Everything of ours is
// killed in the middle; telephony comes back by itself, and a second run ends
// what the first began.
func TestLive(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" {
		t.Skip("boots a machine: run make test")
	}
	m := unsealed(t)
	run := func(argv ...string) string {
		t.Helper()
		out, err := m.Run(t.Context(), argv...)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	run("sh", "-ec", `mkdir -p /etc/xivo-firstboot; umask 077
printf 'xivo:\n  version: 1\n  peers: []\n  identity: keep\n  secret: a sentence that only we know\n' >/etc/xivo-firstboot/config.yml`)
	uuid := run("sh", "-c", `. /etc/profile.d/xivo_uuid.sh; echo "$XIVO_UUID"`)
	const kv = `curl -ksf -H "X-Consul-Token: $(cat /var/lib/consul/master_token)" "https://localhost:8500/v1/kv/?recurse" |
python3 -c 'import json, sys; print("\n".join(sorted(e["Key"] + " " + str(e["Value"]) for e in json.load(sys.stdin))))'`
	stored := run("sh", "-ec", kv)
	if !strings.Contains(stored, "xivo/private/") {
		t.Fatalf("the machine has nothing that could be lost:\n%s", stored)
	}

	// The moment at which most is undone: the old Consul's state is gone, and the
	// KV is not back yet.
	done := make(chan error, 1)
	go func() {
		_, err := m.Run(t.Context(), "xivo-firstboot", "run")
		done <- err
	}()
	err := lab.Wait(deadline(t, joinDeadline), "the run to be half way", func(ctx context.Context) (bool, error) {
		select {
		case err := <-done:
			t.Fatalf("the run ended before it was half way: %v", err)
		default:
		}
		_, err := m.Run(ctx, "sh", "-c", "test -e /etc/consul/xivo/interconnection.json && pkill -KILL -x xivo-firstboot")
		return err == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil {
		t.Fatal("the run that was killed says that it ended well")
	}
	telephony := func(ctx context.Context) (bool, error) {
		_, err := m.Run(ctx, "sh", "-c", `systemctl is-active consul rabbitmq-server xivo-confd xivo-dird xivo-ctid && ! iptables -S INPUT | grep -q 'dport 5060 -j DROP'`)
		return err == nil, err
	}
	if out, err := m.Run(t.Context(), "grep", "-c", `"settle.kv-import"`, "/var/lib/xivo-firstboot/journal.json"); err == nil {
		t.Fatalf("the run was killed too late: %s", out)
	}
	if err := lab.Wait(deadline(t, joinDeadline), "telephony to be back with no second run", telephony); err != nil {
		t.Fatal(err)
	}

	out := run("sh", "-c", "xivo-firstboot run 2>&1")
	if !strings.Contains(out, "telephony was down for ") {
		t.Errorf("the report does not say for how long telephony was down:\n%s", out)
	}
	if up, err := telephony(t.Context()); !up {
		t.Fatalf("telephony is down after a run that ended well: %v", err)
	}
	if diff := cmp.Diff(stored, run("sh", "-ec", kv)); diff != "" {
		t.Errorf("the KV is not what it was (-before +after):\n%s", diff)
	}
	if now := run("sh", "-c", `. /etc/profile.d/xivo_uuid.sh; echo "$XIVO_UUID"`); now != uuid {
		t.Errorf("it was adopted, and its UUID changed from %s to %s", uuid, now)
	}
	if out := run("xivo-firstboot", "status", "--wait"); !strings.HasPrefix(out, "alone") {
		t.Errorf("status: %s", out)
	}
	if out := run("xivo-firstboot", "plan"); !strings.HasPrefix(out, "nothing to change") {
		t.Errorf("plan: %s", out)
	}
	run("systemctl", "is-active", "xivo-mesh")
}

// unsealed is a machine with the XiVO that images are baked from, and with our
// program.
func unsealed(t *testing.T) *lab.Machine {
	t.Helper()
	l := unsealedLab(t, "")
	// With the host name that the XiVO has: another one would change with it.
	m, err := l.Start(t.Context(), lab.Node{Name: "xivo", Address: scenario.Address(1)})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitRunning(deadline(t, joinDeadline)); err != nil {
		t.Fatal(err)
	}
	return m
}

// unsealedLab is a lab of such machines; the program is built with some tags.
func unsealedLab(t *testing.T, tags string) *lab.Lab {
	t.Helper()
	debian, layers := xivo(t, recipe.Version, tags)
	l, err := lab.New(t.Context(), debian, layers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLab(t, l) })
	return l
}

// xivo returns the folders of a root with a XiVO of that version and with our
// program, built with some tags.
func xivo(t *testing.T, version, tags string) (debian string, layers []string) {
	t.Helper()
	maker, err := recipe.New(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	debian, layer, err := maker.XiVO(t.Context(), version)
	if err != nil {
		t.Fatal(err)
	}
	program := t.TempDir()
	if err := os.Chmod(program, 0o755); err != nil { // it is a machine's /, too
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-tags="+tags, "-o", filepath.Join(program, "usr/sbin/xivo-firstboot"),
		"github.com/xivo-mesh/packer-plugin-xivo/cmd/xivo-firstboot")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return debian, []string{layer, program}
}
