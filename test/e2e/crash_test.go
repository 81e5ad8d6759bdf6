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
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot"
	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

var (
	kills = flag.Int("kills", 20, "how often TestCrash kills the program, at least")
	seed  = flag.Uint64("seed", 0, "of the random choices of TestCrash; 0: a new one")
	only  = flag.String("at", "", "a failpoint: kill TestCrash's program once only, there")
)

const roundDeadline = 2 * lab.Hang // for a first boot, its kills and its end

// A phase that gives the same answer so often, and for so long, gives no other one.
const (
	sameAnswers = 10
	sameFor     = 3 * time.Minute
)

// TestCrash kills the first boot of an unsealed copy and that of a sealed image
// with SIGKILL, at every boundary of their steps and at random instants, and
// starts it again each time. In the end the machine is the same as after a first
// boot that nobody disturbed.
func TestCrash(t *testing.T) {
	needsLab(t)
	t.Parallel()
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	if *only != "" {
		*kills = 1
	}
	t.Logf("seed %d", *seed)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the same choices again: -kills %d -seed %d", *kills, *seed)
		}
	})
	c := &crash{
		lab:    unsealedLab(t, "failpoints"),
		random: rand.New(rand.NewPCG(*seed, 0)),
		document: fmt.Appendf(nil, "#cloud-config\nxivo:\n  version: 1\n  identity: regenerate\n  secret: seven small boats left harbour today\n  peers: [%s]\n",
			scenario.Address(2)),
	}
	peer := make(chan error, 1)
	go func() { peer <- c.startPeer(t.Context()) }()
	c.original, c.stored = usedXiVO(t, c.lab)
	if err := <-peer; err != nil {
		t.Fatal(err)
	}

	c.sealed = sealedCopy(t, c.lab, c.original)

	start := time.Now()
	references := map[bool]endState{}
	for _, sealed := range []bool{false, true} {
		references[sealed], _ = c.round(t, plan{sealed: sealed})
		if lost := c.stored.differences(references[sealed].only("KV ")); len(lost) > 0 {
			t.Fatalf("the KV after a first boot that nobody disturbed (sealed: %t):\n%s", sealed, strings.Join(lost, "\n"))
		}
	}
	things := len(references[false])
	var all []kill
	lost := 0
	for len(all) < *kills {
		p := c.next(*kills - len(all))
		have, killed := c.round(t, p)
		all = append(all, killed...)
		undisturbed := references[p.sealed]
		diff := undisturbed.differences(have)
		lost += len(diff)
		if len(diff) > 0 {
			t.Errorf("after kills at\n  %s\nthis is not as without them:\n%s\n%s", join(killed), strings.Join(diff, "\n"), c.logs)
			t.Fatal("what did it: ", c.blame(t, undisturbed, p))
		}
	}

	midStep := 0
	for _, k := range all {
		if k.midStep {
			midStep++
		}
	}
	t.Logf("%d kills in %d first boots, at least %d of them in the middle of a step; lost or different: %d of %d things (%d keys of the KV); seed %d; %s",
		len(all), c.rounds-len(references), midStep, lost, things, len(c.stored), *seed, time.Since(start).Round(time.Second))
}

// blame halves what a round was killed at until it knows which kill it was.
func (c *crash) blame(t *testing.T, undisturbed endState, p plan) string {
	suspects := p.at
	for len(suspects) > 1 {
		first, second := suspects[:len(suspects)/2], suspects[len(suspects)/2:]
		have, _ := c.round(t, plan{at: first, sealed: p.sealed})
		if suspects = second; len(undisturbed.differences(have)) > 0 {
			suspects = first
		}
	}
	if len(suspects) == 1 {
		have, _ := c.round(t, plan{at: suspects, sealed: p.sealed})
		if len(undisturbed.differences(have)) > 0 {
			return suspects[0]
		}
	}
	return "no kill alone"
}

// crash is what the rounds of a test share.
type crash struct {
	lab      *lab.Lab
	original *lab.Machine // off; every round has a copy of its disk, or of the next one's
	sealed   *lab.Machine // off too: the image that was made of it
	stored   endState     // what of the original's KV is to be there in the end
	document []byte
	random   *rand.Rand
	rounds   int
	logs     string // what the last round's broker and program said at the end
}

// plan says how the program is killed in one first boot.
type plan struct {
	sealed      bool     // of the image, and not of the unsealed copy
	at          []string // failpoints: at each of these, once
	starts      int      // and so often, at most, in its first half second
	misfortunes bool     // and what else may happen
}

// kill is one that happened.
type kill struct {
	after   time.Duration // since power-on
	where   string
	midStep bool
}

func join(kills []kill) string {
	var where []string
	for _, k := range kills {
		where = append(where, fmt.Sprintf("%5.1fs %s", k.after.Seconds(), k.where))
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

// next is the plan of the next round, of a copy and of the image in turn: first
// every boundary, then as many random instants, now and then a single kill.
func (c *crash) next(missing int) plan {
	p := c.plan(missing)
	p.sealed = c.rounds%2 == 1
	return p
}

func (c *crash) plan(missing int) plan {
	at := boundaries()
	c.random.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
	instants := func(at []string) []string {
		for i := range at {
			// As many shorter than a millisecond as longer than 100.
			d := 10 * math.Pow(10, 5*c.random.Float64())
			at[i] += fmt.Sprintf("+%dus", int(d))
		}
		return at
	}
	switch {
	case *only != "":
		return plan{at: []string{*only}}
	case missing < len(at)/2:
		// More failpoints than kills are wanted: a step without a change to make is
		// not applied, and passes none of its own. Few kills are shared by the copy
		// and the image.
		n := min(missing, (*kills+1)/2)
		return plan{at: append(at[:n:n], instants(at[n:n+n/2])...), starts: 3, misfortunes: true}
	case c.rounds <= 3: // the first of each, after those that nobody disturbed
		return plan{at: at}
	case c.rounds%3 == 0:
		return plan{at: at[:1], misfortunes: true}
	}
	return plan{at: instants(at), starts: 9}
}

// round takes a new copy of the original through its first boot.
func (c *crash) round(t *testing.T, p plan) (endState, []kill) {
	t.Helper()
	c.rounds++
	ctx := deadline(t, roundDeadline)
	original := c.original
	if p.sealed {
		original = c.sealed
	}
	m, err := c.lab.Start(ctx, lab.Node{
		Name:     fmt.Sprintf("crash%d", c.rounds),
		Address:  address(100 + c.rounds),
		UserData: c.document,
		Disk:     original,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
	r := &round{T: t, ctx: ctx, m: m, random: c.random, plan: p}
	r.run("sh", "-c", `printf '%s\n' "$@" >/run/failpoints`, "sh", strings.Join(p.at, "\n"))

	if p.misfortunes {
		if !p.sealed { // which was exported by the seal
			r.diskFull()
		}
		r.twoCopies()
	}
	// As a boot does; the daemons of the original are not enabled.
	undisturbed := reflect.DeepEqual(p, plan{sealed: p.sealed})
	if undisturbed {
		r.asPlanned("become")
	} else {
		r.phase("become")
	}
	r.run("systemctl", "start", "rabbitmq-server", "consul")
	if p.misfortunes {
		r.halfRestored()
	}
	if undisturbed {
		r.asPlanned("settle")
	} else {
		r.phase("settle")
	}
	r.run("systemctl", "start", "xivo-confd", "xivo-dird", "xivo-ctid")
	r.phase("converge")
	if out := r.run("xivo-firstboot", "plan"); !strings.HasPrefix(out, "nothing to change\n") {
		t.Errorf("after kills at\n  %s\na plan is left: %s\n%s", join(r.killed), out, r.broker())
	}

	state := readEndState(t, m)
	c.logs = r.logs()
	t.Logf("first boot %d: %d kills, %s", c.rounds, len(r.killed), time.Since(m.Booted).Round(time.Second))
	// The next newcomer finds a mesh as this one did.
	r.run("xivo-firstboot", "leave")
	if err := m.Poweroff(ctx); err != nil {
		t.Fatal(err)
	}
	return state, r.killed
}

const killedByKill = 128 + 9

// token puts Consul's master token into a shell variable.
const token = `token=$(cat /var/lib/consul/master_token); `

// round is one first boot.
type round struct {
	*testing.T
	ctx    context.Context
	m      *lab.Machine
	random *rand.Rand
	plan   plan
	killed []kill
}

func (r *round) run(argv ...string) string {
	r.Helper()
	out, err := r.m.Run(r.ctx, argv...)
	if err != nil {
		r.fail(err)
	}
	return out
}

func (r *round) fail(err error) {
	r.Helper()
	r.Fatalf("after kills at\n  %s\n%v\n%s", join(r.killed), err, r.broker())
}

// broker tells what a person looks for in a broker that does not federate. The
// machine is gone when the test has ended, and so it is asked before.
func (r *round) broker() string {
	return r.tell(`
		echo '--- federation: the supervisors of links, the places that are taken, what is listed, decorators, the bus'
		rabbitmqctl eval '
			Sup = rabbit_federation_exchange_link_sup_sup,
			{[{element(2, X), P, catch length(supervisor2:which_children(P))} || {X, P, _, _} <- (catch mirrored_supervisor:which_children(Sup))],
			 [{element(2, X), Owner} || {_, {S, X}, Owner, _} <- ets:tab2list(mirrored_sup_childspec), S =:= Sup],
			 catch rabbit_federation_status:status(),
			 rabbit_registry:lookup_all(exchange_decorator),
			 rabbit_exchange:lookup({resource, <<"/">>, exchange, <<"xivo">>})}.'
		echo '--- enabled plugins'; cat /etc/rabbitmq/enabled_plugins
		echo '--- tools of RabbitMQ that run'; ps axww -o pid,ppid,etime,args | grep '[r]abbitmq-plugins\|[r]abbitmqctl'`) + r.logs()
}

// logs are the ends of what the broker and our program said.
func (r *round) logs() string {
	return r.tell(`
		echo '--- the broker'; tail -qn 80 /var/log/rabbitmq/*@*.log | cut -c1-600
		echo '--- its starts and ends'; journalctl --boot --no-pager --quiet --lines=20 --unit=rabbitmq-server`)
}

// tell runs a script of which each line may fail, and returns all that it said.
func (r *round) tell(script string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), time.Minute)
	defer cancel()
	out, err := r.m.Run(ctx, "sh", "-c", "exec 2>&1\n"+script+"\ntrue")
	if err != nil {
		out += err.Error()
	}
	return strings.TrimSpace(out) + "\n"
}

// asPlanned takes a phase from its begin to its end, and compares what it does
// with its plan.
func (r *round) asPlanned(phase string) {
	r.Helper()
	plan := r.run("sh", "-ec", "xivo-firstboot plan 2>/dev/null")
	ran := r.run("sh", "-ec", "xivo-firstboot "+phase+" 2>&1")
	asPlanned(r.T, phase, anonymous(r.T, r.m, plan), anonymous(r.T, r.m, ran))
}

// withFailpoints is the command line that runs a phase and kills it where the
// file says.
func withFailpoints(file, phase string) []string {
	return []string{"env", "ENGINE_FAILPOINTS=" + file, "xivo-firstboot", phase}
}

// phase starts a phase again and again until it comes to its end.
func (r *round) phase(name string) {
	r.Helper()
	starts := r.plan.starts / len(firstboot.Phases())
	var same answers
	err := lab.Wait(r.ctx, name+" to end", func(ctx context.Context) (bool, error) {
		for {
			argv := withFailpoints("/run/failpoints", name)
			alive := time.Duration(r.random.Int64N(int64(time.Second / 2)))
			if starts > 0 {
				argv = append([]string{"timeout", "--foreground", "--signal=KILL", fmt.Sprint(alive.Seconds())}, argv...)
			}
			before := r.run("cat", "/run/failpoints")
			out, err := r.m.Run(ctx, argv...)
			switch code := lab.ExitCode(err); {
			case code == 0:
				return true, nil
			case code == 3 && name == "converge" || ctx.Err() != nil:
				if n, since := same.count(out); n >= sameAnswers && since > sameFor {
					r.fail(fmt.Errorf("%d times the same answer in %s: %w: %s", n, since.Round(time.Second), err, out))
				}
				return false, fmt.Errorf("%w: %s", err, out) // joining
			case code != killedByKill:
				r.fail(err)
			}
			k := kill{after: time.Since(r.m.Booted), where: struckOut(before, r.run("cat", "/run/failpoints"))}
			k.midStep = r.begun() || strings.HasPrefix(k.where, "converge.") && !strings.Contains(k.where, "+")
			if k.where == "" {
				starts--
				k.where = fmt.Sprintf("%s, %s after its start", name, alive.Round(time.Millisecond))
			}
			r.killed = append(r.killed, k)
		}
	})
	if err != nil {
		r.fail(err)
	}
}

// answers counts equal ones.
type answers struct {
	last  string
	times int
	since time.Time
}

// count takes an answer, and tells how often in a row it was given, and for how
// long. An answer is the last line that the program printed: its state.
func (a *answers) count(out string) (int, time.Duration) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if state := lines[len(lines)-1]; state != a.last || a.times == 0 {
		*a = answers{last: state, since: time.Now()}
	}
	a.times++
	return a.times, time.Since(a.since)
}

// diskFull lets the disk be full while the KV is exported: nothing is removed.
func (r *round) diskFull() {
	r.Helper()
	const everything = `cd /; { PGPASSWORD=proformatique pg_dump --host=localhost --username=asterisk --data-only asterisk | grep -v '^\\'; tar --create etc var/lib/consul; } | sha256sum`
	before := r.run("sh", "-c", everything)
	for what, size := range map[string]string{
		"a copy of Consul's state":       "1m",
		"that copy, but not its content": "$(($(du --summarize --block-size=1k /var/lib/consul/raft | cut -f1) + 512))k",
	} {
		r.run("sh", "-ec", `mkdir -p -m 700 /var/lib/xivo-firstboot; mount -t tmpfs -o mode=700,size=`+size+` tmpfs /var/lib/xivo-firstboot`)
		_, err := r.m.Run(r.ctx, "xivo-firstboot", "become")
		if lab.ExitCode(err) != 1 || !strings.Contains(err.Error(), "export the KV at rest") {
			r.Errorf("the disk has no room for %s: want exit code 1 and why, got %v", what, err)
		}
		r.run("umount", "/var/lib/xivo-firstboot")
		if now := r.run("sh", "-c", everything); now != before {
			r.Errorf("the disk has no room for %s, and Consul, the database or /etc changed all the same", what)
		}
	}
}

// twoCopies starts the program twice. One works, until it is killed like any
// other; the other says who has the lock.
func (r *round) twoCopies() {
	r.Helper()
	const where = "become.kv-export:before-done"
	r.run("sh", "-c", "echo "+where+" >/run/failpoints.both")
	ends := make(chan error)
	for range 2 {
		go func() {
			_, err := r.m.Run(r.ctx, withFailpoints("/run/failpoints.both", "become")...)
			ends <- err
		}()
	}
	second, first := <-ends, <-ends
	if lab.ExitCode(second) != 3 || !strings.Contains(second.Error(), "pid ") || !strings.Contains(second.Error(), ": xivo-firstboot become)") {
		r.Errorf("of two copies, the second: want exit code 3 and the process that works, got %v", second)
	}
	if lab.ExitCode(first) != killedByKill {
		r.Errorf("of two copies, the first: want it killed at %s, got %v", where, first)
	}
	r.killed = append(r.killed, kill{time.Since(r.m.Booted), where + " of two copies", true})
}

// halfRestored kills Consul while the KV is put back. The program says so and
// ends, the export stays.
func (r *round) halfRestored() {
	r.Helper()
	_, err := r.m.Run(r.ctx, "sh", "-c", token+`
		xivo-firstboot settle & settle=$!
		until curl -ksf -H "X-Consul-Token: $token" "https://localhost:8500/v1/kv/xivo/private/user1/?keys" >/dev/null; do kill -0 $settle || break; done
		systemctl kill --signal=KILL consul
		wait $settle`)
	if lab.ExitCode(err) != 1 || !strings.Contains(err.Error(), "the export is intact, run again") {
		r.Errorf("Consul dies while the KV is put back: want exit code 1 and what to do, got %v", err)
	}
	r.run("consul-wait-leader")
	if n := len(readKV(r.T, r.m)); n == 0 || n > 2000 {
		r.Errorf("Consul was to die while the KV is put back, and has %d keys", n)
	}
}

// begun says whether the journal has a step that was begun and is not done.
func (r *round) begun() bool {
	_, err := r.m.Run(r.ctx, "grep", "-q", `"state": "running"`, "/var/lib/xivo-firstboot/journal.json")
	return err == nil
}

// struckOut are the lines that one text has and the other has not.
func struckOut(before, after string) string {
	left := strings.Fields(after)
	return strings.Join(slices.DeleteFunc(strings.Fields(before), func(line string) bool {
		return slices.Contains(left, line)
	}), ", ")
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
func (c *crash) startPeer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lab.Hang)
	defer cancel()
	peer, err := c.lab.Start(ctx, lab.Node{Name: "peer", Address: scenario.Address(2), UserData: c.document})
	if err == nil {
		err = peer.WaitRunning(ctx)
	}
	if err == nil {
		_, err = peer.Run(ctx, "xivo-firstboot", "run")
	}
	return err
}

// usedXiVO is a XiVO that never was a node and has much that can be lost, and
// its KV without the live tokens. It is off, and starts none of XiVO's services
// by itself.
func usedXiVO(t *testing.T, l *lab.Lab) (*lab.Machine, endState) {
	t.Helper()
	ctx := deadline(t, lab.Hang)
	m, err := l.Start(ctx, lab.Node{Name: "xivo", Address: scenario.Address(1)})
	if err == nil {
		err = m.WaitRunning(ctx)
	}
	if err == nil {
		err = fillKV(ctx, m)
	}
	// As the package has them; the copies do by hand what they would do.
	for _, f := range cloudinit.ImageFiles() {
		if err == nil && strings.HasSuffix(f.Path, ".service") {
			err = feed(ctx, m, f.Content, "cat >"+f.Path)
		}
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

// sealedCopy is the image that a bake would make of a machine. It is off, and the
// watch is not enabled: the test makes the passes.
func sealedCopy(t *testing.T, l *lab.Lab, original *lab.Machine) *lab.Machine {
	t.Helper()
	ctx := deadline(t, lab.Hang)
	m, err := l.Start(ctx, lab.Node{Name: "sealed", Address: address(99), Disk: original})
	if err == nil {
		err = m.WaitRunning(ctx)
	}
	if err == nil {
		err = seals(ctx, m)
	}
	if err == nil {
		_, err = m.Run(ctx, "systemctl", "disable", "xivo-mesh")
	}
	if err == nil {
		err = m.Poweroff(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
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
