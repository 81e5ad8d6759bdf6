package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// live is a running XiVO that was never baked.
type live struct {
	*lab.Machine
	t *testing.T
}

func (l live) run(script string) string {
	l.t.Helper()
	out, err := l.Run(l.t.Context(), "sh", "-ec", script)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// document writes what a person would, who has no cloud-init.
func (l live) document(identity string) {
	l.t.Helper()
	l.run(`mkdir -p /etc/xivo-firstboot; umask 077
printf 'xivo:\n  version: 1\n  peers: []\n  identity: ` + identity + `\n  secret: seven small boats left harbour today\n' >/etc/xivo-firstboot/config.yml`)
}

func (l live) uuid() string {
	l.t.Helper()
	return l.run(`. /etc/profile.d/xivo_uuid.sh; echo "$XIVO_UUID"`)
}

// kv is all of Consul's KV, a line for each key, but for live tokens when the
// identity is new.
func (l live) kv(but string) string {
	l.t.Helper()
	return l.run(`curl -ksf -H "X-Consul-Token: $(cat /var/lib/consul/master_token)" "https://localhost:8500/v1/kv/?recurse" |
python3 -c 'import json, sys; print("\n".join(sorted(e["Key"] + " " + str(e["Value"]) for e in json.load(sys.stdin) if not (sys.argv[1] and e["Key"].startswith(sys.argv[1])))))' '` + but + `'`)
}

// store puts a key into the KV of the Consul that runs, and returns what kv shows
// then, if it showed stored before its state went.
func (l live) store(stored, key, value string) string {
	l.t.Helper()
	l.run(`token=$(sed -n 's/.*"acl_master_token": "\(.*\)".*/\1/p' /etc/consul/xivo/interconnection.json)
until curl -ksf -X PUT -H "X-Consul-Token: $token" -d '` + value + `' "https://localhost:8500/v1/kv/` + key + `"; do systemctl is-active consul; done`)
	lines := append(strings.Split(stored, "\n"), key+" "+base64.StdEncoding.EncodeToString([]byte(value)))
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// waitTelephony waits until phones work: XiVO's services and the brokers run,
// SIP is open, and nothing of a run is left that would do anything to them.
func (l live) waitTelephony() {
	l.t.Helper()
	err := lab.Wait(deadline(l.t, lab.Hang), "telephony to be back with no second run", func(ctx context.Context) (bool, error) {
		_, err := l.Run(ctx, "sh", "-c", `systemctl is-active consul rabbitmq-server xivo-confd xivo-dird xivo-ctid && ! iptables -S INPUT | grep -q 'dport 5060 -j DROP' && systemctl show --property=ActiveState xivo-firstboot-run | grep -q -e inactive -e failed`)
		return err == nil, err
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// disturb begins a run, waits until it has come as far as a script says, and
// does something to it. What the run then says is returned.
func (l live) disturb(far string, do func(terminal context.CancelFunc)) error {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := l.Run(ctx, "xivo-firstboot", "run")
		done <- err
	}()
	err := lab.Wait(deadline(l.t, lab.Hang), "the run to be half way", func(ctx context.Context) (bool, error) {
		select {
		case err := <-done:
			return false, fmt.Errorf("the run ended before it was half way: %w", err)
		default:
		}
		_, err := l.Run(ctx, "sh", "-c", far)
		return err == nil, nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := l.Run(l.t.Context(), "grep", `"settle.kv-import"`, "/var/lib/xivo-firstboot/journal.json"); err == nil {
		l.t.Fatal("the run is past its half already")
	}
	do(cancel)
	return <-done
}

// The moments at which most is undone: XiVO is stopped, and Consul's state is
// gone while the KV is not back yet.
const (
	emptied = "test -e /etc/consul/xivo/interconnection.json && ! test -e /var/lib/consul/raft"
	stopped = "! systemctl is-active consul"
)

// TestLive adopts a running XiVO. Its run is ended in every way there is; each
// time telephony comes back by itself, and the next run goes on.
func TestLive(t *testing.T) {
	needsLab(t)
	t.Parallel()
	l := live{unsealed(t), t}
	l.document("keep")
	uuid, stored := l.uuid(), l.kv("")
	if !strings.Contains(stored, "xivo/private/") {
		t.Fatalf("the machine has nothing that could be lost:\n%s", stored)
	}

	for _, tc := range []struct {
		name string
		far  string
		do   func(l live, terminal context.CancelFunc)
	}{
		{"SIGKILL of every process of ours", emptied, func(l live, _ context.CancelFunc) { l.run("pkill -KILL -x xivo-firstboot") }},
		{"SIGTERM", stopped, func(l live, _ context.CancelFunc) { l.run("pkill -TERM -x xivo-firstboot") }},
		{"the terminal goes away, and the run goes on to its end", stopped, func(_ live, terminal context.CancelFunc) { terminal() }},
	} {
		if !t.Run(tc.name, func(t *testing.T) {
			l := live{l.Machine, t}
			if err := l.disturb(tc.far, func(terminal context.CancelFunc) { tc.do(l, terminal) }); err == nil {
				t.Error("the run that was disturbed says that it ended well")
			}
			l.waitTelephony()
		}) {
			return
		}
		if tc.far == emptied {
			stored = l.store(stored, "xivo/private/later", "a contact of the time without a KV")
		}
	}

	if out := l.run("xivo-firstboot status --wait"); !strings.HasPrefix(out, "alone") {
		t.Errorf("status: %s", out)
	}
	if diff := cmp.Diff(stored, l.kv("")); diff != "" {
		t.Errorf("the KV is not what it was (-before +after):\n%s", diff)
	}
	if now := l.uuid(); now != uuid {
		t.Errorf("it was adopted, and its UUID changed from %s to %s", uuid, now)
	}
	if out := l.run("xivo-firstboot plan"); !strings.HasPrefix(out, "nothing to change") {
		t.Errorf("plan: %s", out)
	}
	l.run("systemctl is-active xivo-mesh")
}

// TestLivePowerCut gives a running copy an identity of its own, and the power
// goes in the middle of it: the next boot goes on.
func TestLivePowerCut(t *testing.T) {
	needsLab(t)
	t.Parallel()
	l := live{unsealed(t), t}
	l.document("regenerate")
	const liveTokens = "xivo/xivo-auth/"
	uuid, stored := l.uuid(), l.kv(liveTokens)

	l.disturb(emptied, func(context.CancelFunc) { l.Cut() })
	if err := l.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitRunning(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	l.waitTelephony()
	if out := l.run("xivo-firstboot status --wait"); !strings.HasPrefix(out, "alone") {
		t.Errorf("status: %s", out)
	}
	if diff := cmp.Diff(stored, l.kv(liveTokens)); diff != "" {
		t.Errorf("the KV is not what it was (-before +after):\n%s", diff)
	}
	if now := l.uuid(); now == uuid {
		t.Error("the copy has the original's UUID")
	}
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
	if err := m.WaitRunning(deadline(t, lab.Hang)); err != nil {
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
