package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

var (
	kills = flag.Int("kills", 20, "how often TestCrash kills the program, at least")
	seed  = flag.Uint64("seed", 0, "of the random choices of TestCrash; 0: a new one")
	at    = flag.String("at", "", "kill TestCrash's program once only, at this boundary (PHASE.STEP:BOUNDARY)")
)

const roundDeadline = 5 * time.Minute

// TestCrash kills the first boot of an unsealed copy with SIGKILL, at every
// boundary of its steps and at random instants, and starts it again each time.
// In the end the machine is the same as after a first boot that nobody
// disturbed.
func TestCrash(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" {
		t.Skip("boots machines: run make test or make test-crash")
	}
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	if *at != "" {
		*kills = 1
	}
	t.Logf("seed %d", *seed)
	c := &crash{lab: unsealedLab(t, "failpoints"), random: rand.New(rand.NewPCG(*seed, 0))}
	c.original, c.stored = usedXiVO(t, c.lab)
	c.startPeer(t)

	start := time.Now()
	undisturbed, _ := c.round(t, plan{})
	if lost := c.stored.differences(undisturbed.only("KV ")); len(lost) > 0 {
		t.Fatalf("the KV after a first boot that nobody disturbed:\n%s", strings.Join(lost, "\n"))
	}
	lost := 0
	for len(c.killed) < *kills {
		p := c.next()
		have, killed := c.round(t, p)
		diff := undisturbed.differences(have)
		lost += len(diff)
		if len(diff) > 0 {
			t.Errorf("after kills at\n  %s\nthis is not as without them:\n%s", join(killed), strings.Join(diff, "\n"))
		}
	}

	midStep := 0
	for _, k := range c.killed {
		if k.midStep {
			midStep++
		}
	}
	t.Logf("%d kills in %d first boots, %d of them in the middle of a step; lost or different: %d of %d things (%d keys of the KV); seed %d; %s",
		len(c.killed), c.rounds-1, midStep, lost, len(undisturbed), len(c.stored), *seed, time.Since(start).Round(time.Second))
}

// crash is what the rounds of a test share.
type crash struct {
	lab      *lab.Lab
	original *lab.Machine // off; every round has a copy of its disk
	stored   endState     // what of the original's KV is to be there in the end
	document []byte
	random   *rand.Rand

	rounds int
	killed []kill
}

// plan says how the program is killed in one first boot.
type plan struct {
	boundaries []string // at each of these, once
	instants   int      // and so often, at most, at any time
}

// kill is one that happened.
type kill struct {
	where   string
	midStep bool
}

func join(kills []kill) string {
	var where []string
	for _, k := range kills {
		where = append(where, k.where)
	}
	return strings.Join(where, "\n  ")
}

// boundaries are all places at which a power cut leaves something begun.
func boundaries() []string {
	var all []string
	for _, p := range firstboot.Phases() {
		for _, s := range p.Steps {
			for _, b := range []string{"before-apply", "after-apply", "before-done"} {
				all = append(all, fmt.Sprintf("%s.%s:%s", p.Name, s.Name, b))
			}
		}
		if p.Once {
			all = append(all, p.Name+":before-done")
		}
	}
	return all
}

// next is the plan of the next round: first every boundary in turn, then random
// instants with some boundaries between them, now and then a single kill.
func (c *crash) next() plan {
	all := boundaries()
	missing := *kills - len(c.killed)
	c.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	switch {
	case *at != "":
		return plan{boundaries: []string{*at}}
	case missing < len(all):
		// A step that has nothing to do has no Apply, so not all are come by.
		return plan{boundaries: all[:missing], instants: missing}
	case c.rounds == 1:
		return plan{boundaries: all}
	case c.rounds%3 == 0:
		return plan{boundaries: all[:1]}
	}
	return plan{boundaries: all[:len(all)/3], instants: 30}
}

// round takes a new copy of the original through its first boot.
func (c *crash) round(t *testing.T, p plan) (endState, []kill) {
	t.Helper()
	c.rounds++
	ctx := deadline(t, roundDeadline)
	m, err := c.lab.Start(ctx, lab.Node{
		Name:     fmt.Sprintf("crash%d", c.rounds),
		Address:  address(100 + c.rounds),
		UserData: c.document,
		Disk:     c.original,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
	r := &round{t, ctx, m, c.random, p, nil}
	r.run("sh", "-c", `printf '%s\n' "$@" >/run/failpoints`, "sh", strings.Join(p.boundaries, "\n"))

	// As a boot does; the daemons of the original are not enabled.
	r.phase("become")
	r.run("systemctl", "start", "rabbitmq-server", "consul")
	r.phase("settle")
	r.run("systemctl", "start", "xivo-confd", "xivo-dird", "xivo-ctid")
	r.phase("converge")
	if out := r.run("xivo-firstboot", "plan"); strings.TrimSpace(out) != "nothing to change" {
		t.Errorf("after kills at\n  %s\na plan is left: %s", join(r.killed), out)
	}

	state := readEndState(t, m)
	c.killed = append(c.killed, r.killed...)
	// The next newcomer finds a mesh as this one did.
	r.run("sh", "-ec", `curl -ksf -X PUT -H "X-Consul-Token: $(cat /var/lib/consul/master_token)" https://localhost:8500/v1/agent/leave`)
	if err := m.Poweroff(ctx); err != nil {
		t.Fatal(err)
	}
	return state, r.killed
}

// round is one first boot.
type round struct {
	t      *testing.T
	ctx    context.Context
	m      *lab.Machine
	random *rand.Rand
	plan   plan
	killed []kill
}

func (r *round) run(argv ...string) string {
	r.t.Helper()
	out, err := r.m.Run(r.ctx, argv...)
	if err != nil {
		r.t.Fatalf("after kills at\n  %s\n%v", join(r.killed), err)
	}
	return out
}

// phase starts a phase again and again until it comes to its end.
func (r *round) phase(name string) {
	r.t.Helper()
	left := func() string { return r.run("cat", "/run/failpoints") }
	const killedByKill = 128 + 9
	patience := 100 * time.Millisecond
	instants := r.plan.instants / 3
	err := lab.Wait(r.ctx, name+" to end", func(ctx context.Context) (bool, error) {
		for {
			before := left()
			argv := []string{"env", "XIVO_FIRSTBOOT_FAILPOINTS=/run/failpoints", "xivo-firstboot", name}
			alive := time.Duration(r.random.Int64N(int64(patience)))
			if instants > 0 {
				argv = append([]string{"timeout", "--foreground", "--signal=KILL", fmt.Sprint(alive.Seconds())}, argv...)
			}
			_, err := r.m.Run(ctx, argv...)
			switch lab.ExitCode(err) {
			case 0:
				return true, nil
			case killedByKill:
			case 3:
				if name == "converge" {
					return false, err // joining
				}
				fallthrough
			default:
				r.t.Fatalf("%s after kills at\n  %s\n%v", name, join(r.killed), err)
			}
			k := kill{where: struckOut(before, left())}
			if k.where == "" {
				instants--
				// Later and later, or nothing would ever get further.
				patience += patience / 4
				k.where = fmt.Sprintf("%s, %s after its start", name, alive.Round(time.Millisecond))
				k.midStep = name != "converge" && r.begun()
			} else {
				k.midStep = strings.Contains(k.where, ".") // not between two phases
			}
			r.killed = append(r.killed, k)
		}
	})
	if err != nil {
		r.t.Fatalf("after kills at\n  %s\n%v", join(r.killed), err)
	}
}

// begun says whether the journal has a step that was begun and is not done.
func (r *round) begun() bool {
	_, err := r.m.Run(r.ctx, "grep", "-q", `"state": "running"`, "/var/lib/xivo-firstboot/journal.json")
	return err == nil
}

// struckOut is the line that one text has and the other has not.
func struckOut(before, after string) string {
	left := strings.Fields(after)
	for _, line := range strings.Fields(before) {
		if !slices.Contains(left, line) {
			return line
		}
	}
	return ""
}

func (s endState) only(prefix string) endState {
	part := maps.Clone(s)
	maps.DeleteFunc(part, func(item, _ string) bool { return !strings.HasPrefix(item, prefix) })
	return part
}

func address(last int) netip.Addr {
	a := lab.Network.Addr().As4()
	a[3] = byte(last)
	return netip.AddrFrom4(a)
}

// startPeer starts the node that the others join.
func (c *crash) startPeer(t *testing.T) {
	t.Helper()
	const document = "#cloud-config\nxivo:\n  version: 1\n  identity: regenerate\n  secret: a sentence that only we know\n  peers: [%s]\n"
	c.document = fmt.Appendf(nil, document, scenario.Address(2))
	peer, err := c.lab.Start(t.Context(), lab.Node{Name: "peer", Address: scenario.Address(2), UserData: c.document})
	if err == nil {
		err = peer.WaitRunning(deadline(t, joinDeadline))
	}
	if err == nil {
		_, err = peer.Run(deadline(t, joinDeadline), "xivo-firstboot", "run")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// usedXiVO is a XiVO that never was a node and has much that can be lost, and
// its KV without the live tokens. It is off, and starts none of XiVO's services
// by itself.
func usedXiVO(t *testing.T, l *lab.Lab) (*lab.Machine, endState) {
	t.Helper()
	ctx := deadline(t, joinDeadline)
	m, err := l.Start(ctx, lab.Node{Name: "xivo", Address: scenario.Address(1)})
	if err == nil {
		err = m.WaitRunning(ctx)
	}
	if err == nil {
		err = fillKV(ctx, m)
	}
	if err != nil {
		t.Fatal(err)
	}
	stored := readKV(t, m)
	live := len(stored)
	maps.DeleteFunc(stored, func(item, _ string) bool { return strings.HasPrefix(item, "KV xivo/xivo-auth/") })
	if live == len(stored) || len(stored) < 2000 {
		t.Fatalf("the KV has %d keys, %d without live tokens", live, len(stored))
	}
	// Somebody federated it by hand, and it is not to go on with that.
	_, err = m.Run(ctx, "sh", "-ec", `
rabbitmq-plugins enable rabbitmq_federation rabbitmq_management
rabbitmqctl set_cluster_name the-original
rabbitmqctl add_user xivo xivo
rabbitmqctl set_permissions xivo '.*' '.*' '.*'
rabbitmqctl set_parameter federation-upstream original '{"uri": "amqp://xivo:xivo@10.77.0.99", "max-hops": 1}'
rabbitmqctl set_policy federate-xivo '^xivo$' '{"federation-upstream-set": "all"}' --apply-to exchanges
systemctl stop xivo-ctid xivo-dird xivo-confd consul rabbitmq-server
systemctl disable xivo-ctid xivo-dird xivo-confd consul rabbitmq-server
rabbitmq-plugins disable --offline rabbitmq_federation rabbitmq_management`)
	if err == nil {
		err = m.Poweroff(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m, stored
}

type kvEntry struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
	Flags uint64 `json:"flags"`
}

// fillKV stores what years of use and every tool there is may leave.
func fillKV(ctx context.Context, m *lab.Machine) error {
	entries := []kvEntry{
		{Key: "xivo/big", Value: bytes.Repeat([]byte("0123456789"), 50<<10)},
		{Key: "xivo/empty", Value: []byte{}},
		{Key: "xivo/null", Value: nil},
		{Key: "xivo/not UTF-8", Value: []byte("\xff\xfe\x00binary")},
		{Key: "xivo/100%/?x=y&z #é/日本", Value: []byte("an odd key")},
		{Key: "xivo/%2F%20", Value: []byte("looks encoded")},
		{Key: "xivo/folder/", Value: []byte("ends like a folder")},
		{Key: "xivo/flags", Value: []byte("42"), Flags: 42},
		{Key: "xivo/all flags", Value: []byte("2^64-1"), Flags: math.MaxUint64},
		{Key: "elsewhere/key", Value: []byte("not XiVO's")},
		{Key: "top", Value: []byte("in no folder")},
	}
	for i := range 2000 {
		entries = append(entries, kvEntry{Key: fmt.Sprintf("xivo/private/user%d/contacts/personal/%d/firstname", i/20, i), Value: fmt.Appendf(nil, "Zoé %d", i)})
	}
	text, err := json.Marshal(entries)
	if err != nil {
		return err
	}
	// Keys that no URL carries: only a transaction makes them.
	const odd = `[{"KV": {"Verb": "set", "Key": "xivo//double", "Value": "MQ==", "Flags": 18446744073709551615}},
{"KV": {"Verb": "set", "Key": "xivo/a/../b", "Value": "Mg=="}},
{"KV": {"Verb": "set", "Key": "/leading", "Value": "Mw=="}},
{"KV": {"Verb": "set", "Key": "xivo/new\nline", "Value": "NA=="}}]`
	const token = `token=$(cat /var/lib/consul/master_token); `
	return errors.Join(
		feed(ctx, m, text, token+`CONSUL_HTTP_SSL_VERIFY=false CONSUL_HTTP_TOKEN=$token consul kv import -http-addr=https://localhost:8500 - >/dev/null`),
		feed(ctx, m, []byte(odd), token+`curl -ksSf -X PUT -H "X-Consul-Token: $token" --data-binary @- https://localhost:8500/v1/txn`))
}

// feed runs a script in the machine with something to read.
func feed(ctx context.Context, m *lab.Machine, stdin []byte, script string) error {
	argv, err := m.Argv("env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-ec", script)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = bytes.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
