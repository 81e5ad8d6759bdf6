package e2e

import (
	"context"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// subject is a machine whose identity is in question.
type subject struct {
	*scenario.Node
	t *testing.T
}

func (s subject) run(t *testing.T, script string) string {
	t.Helper()
	out, err := s.Run(t.Context(), "sh", "-ec", script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (s subject) uuid(t *testing.T) string {
	t.Helper()
	id, err := s.UUID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// is checks what a person sees who looks at the node, and that telephony runs.
func (s subject) is(t *testing.T, state, why string) {
	t.Helper()
	status, err := s.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if status.State != state || !strings.Contains(status.Why, why) {
		t.Errorf("it is %s (%s), want %s (%s)", status.State, status.Why, state, why)
	}
	s.run(t, "systemctl is-active consul rabbitmq-server xivo-confd xivo-dird xivo-ctid")
}

// held checks that no pass touches the node, and how that is told.
func (s subject) held(t *testing.T) {
	t.Helper()
	const waiting = 3
	if out, err := s.Run(t.Context(), "xivo-firstboot", "converge"); lab.ExitCode(err) != waiting {
		t.Errorf("a pass on a node that waits: %v\n%s", err, out)
	}
}

// asPlanned compares what plan prints with what a run then tells of a phase.
func asPlanned(t *testing.T, phase, plan, ran string) {
	t.Helper()
	const follows = "follows from "
	did := map[string]string{}
	for _, m := range changed.FindAllStringSubmatch(ran, -1) {
		if m[1] == phase {
			did[m[1]+"."+m[2]] = m[3]
		}
	}
	said := map[string]string{}
	for line := range strings.Lines(plan) {
		step, what, _ := strings.Cut(strings.TrimSpace(line), ": ")
		if step == "notice" {
			continue
		}
		if step == "skipped" {
			skipped, _, _ := strings.Cut(what, ", because ")
			if did[skipped] != "" {
				t.Errorf("%s: it was planned to be skipped, and did %s", skipped, did[skipped])
			}
			continue
		}
		if earlier, ok := strings.CutPrefix(what, follows); ok {
			if did[step] == "" || said[earlier] == "" {
				t.Errorf("%s: it was planned that it follows from %s, and it did not", step, earlier)
			}
			what = did[step]
		}
		if said[step] != "" {
			what = said[step] + "; " + what
		}
		said[step] = what
	}
	if len(said) == 0 {
		t.Errorf("nothing was planned:\n%s", ran)
	}
	if diff := cmp.Diff(said, did); diff != "" {
		t.Errorf("what was planned, and what the run did (-plan +run):\n%s\n%s", diff, ran)
	}
}

// anonymous is what a run told, less what it drew: no plan can know that.
func anonymous(t *testing.T, m *lab.Machine, told string) string {
	t.Helper()
	id, err := (&scenario.Node{Machine: m}).UUID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name, err := m.Run(t.Context(), "sed", "-n", `s/.*"node_name": "\(.*\)".*/\1/p`, "/etc/consul/xivo/interconnection.json")
	if err != nil {
		t.Fatal(err)
	}
	return overlayAddress.ReplaceAllString(strings.NewReplacer(id, "a new UUID", strings.TrimSpace(name), "a new name").Replace(told), "an overlay address")
}

// overlayAddress is one of the range that a document has which names none.
var overlayAddress = regexp.MustCompile(`\b100\.88\.\d+\.\d+\b`)

// changed is how the progress of a step tells that it changed something.
var changed = regexp.MustCompile(`(?m)^(\w+) \d+/\d+ (\S+) \(\S+\)  changed: (.*)$`)

// TestIdentityOfARunningServer takes a server that was never sealed through
// everything that cloud-init and the hardware may say about it.
func TestIdentityOfARunningServer(t *testing.T) {
	needsLab(t)
	t.Parallel()
	s := subject{&scenario.Node{Machine: unsealed(t)}, t}
	original := s.uuid(t)

	const (
		ours     = "4c4c4544-0051-3010-8052-b4c04f4d3132"
		swapped  = "44454c4c-5100-1030-8052-b4c04f4d3132"
		another  = "7b0a1c5e-93d2-4e0f-8f55-2a6f5f0e9c01"
		instance = "iid-xivo"
	)
	// The hardware's UUID, where a lab machine has none, in a file that can change.
	s.run(t, `mkdir -p /run/class/dmi/id; touch /run/class/dmi/id/product_uuid /run/product_uuid
mount -t overlay -o lowerdir=/run/class:/sys/class overlay /sys/class
mount --bind /run/product_uuid /sys/class/dmi/id/product_uuid`)
	hardware := func(id string) {
		t.Helper()
		s.run(t, "echo "+id+" >/run/product_uuid; cat /sys/class/dmi/id/product_uuid")
	}
	cloudInit := func(id string) { t.Helper(); s.run(t, "echo "+id+" >/var/lib/cloud/data/instance-id") }
	document := func(identity string) {
		t.Helper()
		s.run(t, `mkdir -p /etc/xivo-firstboot; umask 077
printf 'xivo:\n  version: 1\n  peers: []\n  secret: seven small boats left harbour today\n`+identity+`' >/etc/xivo-firstboot/config.yml`)
	}
	hardware(ours)

	t.Run("never sealed, no document: left as it is", func(t *testing.T) {
		s.is(t, "waiting", "not sealed, and no document: left as it is")
		s.held(t)
	})
	t.Run("never sealed, a document that does not say whose identity: left as it is", func(t *testing.T) {
		document("")
		s.is(t, "waiting", "does not say `identity: keep` or `identity: regenerate`")
		s.held(t)
	})
	if s.uuid(t) != original {
		t.Fatal("it was to be left as it is, and has another UUID")
	}
	t.Run("never sealed, identity: keep: run adopts it as it is, and does what plan said", func(t *testing.T) {
		document(`  identity: keep\n`)
		s.is(t, "waiting", "identity: keep; that is still to be done: `xivo-firstboot run` does it")
		plan := s.run(t, "xivo-firstboot plan 2>/dev/null")
		out := s.run(t, "xivo-firstboot run 2>&1 && xivo-firstboot status --wait")
		asPlanned(t, "become", plan, out)
		s.is(t, "alone", "")
	})
	t.Run("converge does what plan said", func(t *testing.T) {
		s.run(t, `systemctl stop xivo-mesh
iptables -F XIVO-MESH-IN
PGPASSWORD=proformatique psql -q -h localhost -U asterisk -c "DELETE FROM accesswebservice WHERE name LIKE 'xivo-mesh-%'" asterisk`)
		plan := s.run(t, "xivo-firstboot plan")
		asPlanned(t, "converge", plan, s.run(t, "xivo-firstboot converge 2>&1; systemctl start xivo-mesh"))
	})
	if t.Failed() {
		return
	}

	for _, tc := range []struct {
		name               string
		instance, hardware string
		state, why         string
	}{
		{"nothing changed", instance, ours, "alone", ""},
		{"the hardware tells its UUID in the other byte order", instance, swapped, "alone", ""},
		{"the hardware tells none", instance, "", "alone", ""},
		{"the seed is detached, and cloud-init makes up an instance id", "iid-datasource-none", ours, "alone", ""},
		{"the seed is detached, and another made-up id", "nocloud", ours, "alone", ""},
		{"another hardware only: a person has to say", instance, another,
			"waiting", "the hardware's product UUID changed from " + ours + " to " + another + ", but not the instance id"},
		{"another instance id only: a person has to say", "iid-other", ours,
			"waiting", "the instance id changed from " + instance + " to iid-other, but the hardware is the same"},
		{"all as before", instance, ours, "alone", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cloudInit(tc.instance)
			hardware(tc.hardware)
			s.is(t, tc.state, tc.why)
			if tc.state == "waiting" {
				s.held(t)
			}
			if id := s.uuid(t); id != original {
				t.Errorf("doubt changed the UUID from %s to %s", original, id)
			}
		})
	}
	if t.Failed() {
		return
	}

	t.Run("another instance id and another hardware: a copy, and the copied keep is void", func(t *testing.T) {
		cloudInit("iid-other")
		hardware(another)
		s.is(t, "waiting", "a clone: the instance id is iid-other, it was "+instance)
		plan := s.run(t, "xivo-firstboot plan 2>/dev/null")
		out := s.run(t, "xivo-firstboot run 2>&1")
		if !strings.Contains(out, "telephony was down for ") {
			t.Errorf("the report does not say for how long telephony was down:\n%s", out)
		}
		s.run(t, "xivo-firstboot status --wait")
		s.is(t, "alone", "")
		asPlanned(t, "become", anonymous(t, s.Machine, plan), anonymous(t, s.Machine, out))
		if id := s.uuid(t); id == original || uuid.Validate(id) != nil {
			t.Errorf("the copy's UUID is %q, the original's %s", id, original)
		}
	})

	t.Run("another hardware only, and a person says that it is a copy", func(t *testing.T) {
		before := s.uuid(t)
		hardware(ours)
		s.is(t, "waiting", "if this is a copy, run `xivo-firstboot run --confirm`")
		s.run(t, "xivo-firstboot run --confirm && xivo-firstboot status --wait")
		s.is(t, "alone", "")
		if id := s.uuid(t); id == before || uuid.Validate(id) != nil {
			t.Errorf("the copy's UUID is %q, it was %s", id, before)
		}
	})

	t.Run("a second run changes nothing", func(t *testing.T) {
		before := picture(t, s.Node)
		s.run(t, "xivo-firstboot run")
		if diff := cmp.Diff(before, picture(t, s.Node)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}

// TestIdentityOfAnImage boots a sealed image that nobody gave a document, and
// then goes on to take things away from it.
func TestIdentityOfAnImage(t *testing.T) {
	needsLab(t)
	t.Parallel()
	m := newMesh(t)
	machine, err := m.Lab.Start(t.Context(), lab.Node{Name: "single", Address: scenario.Address(1)})
	if err != nil {
		t.Fatal(err)
	}
	s := subject{&scenario.Node{Machine: machine}, t}
	up := func(t *testing.T) {
		t.Helper()
		if err := s.WaitRunning(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
		s.run(t, "xivo-firstboot status --wait")
	}
	reboot := func(t *testing.T, between func() error) {
		t.Helper()
		if err := s.Poweroff(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
		if err := between(); err != nil {
			t.Fatal(err)
		}
		if err := s.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		up(t)
	}
	nothing := func() error { return nil }

	var became string
	ok := t.Run("sealed, no document: it becomes itself, and is alone", func(t *testing.T) {
		up(t)
		s.is(t, "alone", "")
		if became = s.uuid(t); became == uuid.Nil.String() || uuid.Validate(became) != nil {
			t.Errorf("its UUID is %q", became)
		}
	}) && t.Run("a second boot: it stays who it is", func(t *testing.T) {
		reboot(t, nothing)
		s.is(t, "alone", "")
	}) && t.Run("a boot with a document that is broken: the last good one stays in force, and nothing is held", func(t *testing.T) {
		s.run(t, `mkdir -p /etc/xivo-firstboot; umask 077; printf 'xivo:\n  version: 1\n  peer: [10.0.0.1]\n' >/etc/xivo-firstboot/config.yml`)
		reboot(t, nothing)
		s.is(t, "alone", "")
		status, err := s.Status(t.Context())
		if told := strings.Join(status.Errors, "\n"); err != nil || !strings.Contains(told, "the last good one is") || !strings.Contains(told, "unknown key \"peer\"") {
			t.Errorf("what is wrong with the document is not told: %v, %v", status.Errors, err)
		}
	}) && t.Run("a boot with the seed gone: it stays who it is", func(t *testing.T) {
		// Without a data source cloud-init would ask a DHCP server, of which the
		// lab has none.
		s.run(t, `rm /etc/xivo-firstboot/config.yml
printf 'datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\n' >/etc/cloud/cloud.cfg.d/91_none.cfg`)
		reboot(t, machine.DetachSeed)
		if id := s.run(t, "cat /var/lib/cloud/data/instance-id"); id != "iid-datasource-none" {
			t.Fatalf("the seed was detached, and cloud-init says %s", id)
		}
		s.is(t, "alone", "booted without a document")
	}) && t.Run("a boot with the document that it never had: it stays who it is, and loses nothing", func(t *testing.T) {
		l := live{s.Machine, t}
		stored := l.kv("")
		l.document("auto")
		reboot(t, nothing)
		if status, err := s.Status(t.Context()); err != nil || status.State != "alone" || status.Why != "" {
			t.Errorf("it is %s (%s), %v", status.State, status.Why, err)
		}
		if diff := cmp.Diff(stored, l.kv("")); diff != "" {
			t.Errorf("the KV (-before +after):\n%s", diff)
		}
	})
	if id := s.uuid(t); ok && id != became {
		t.Errorf("its UUID is %s, it was %s", id, became)
	}
}

// TestABadDocumentAtTheFirstBoot is what somebody sees who made a mistake in the
// user data of a clone, and then puts it right.
func TestABadDocumentAtTheFirstBoot(t *testing.T) {
	needsLab(t)
	t.Parallel()
	m := newMesh(t)
	machine, err := m.Lab.Start(t.Context(), lab.Node{Name: "single", Address: scenario.Address(1), InstanceID: "iid-mistaken",
		UserData: []byte("#cloud-config\nxivo:\n  version: 1\n  peer: [10.77.0.12]\n  secret: seven small boats left harbour today\n")})
	if err != nil {
		t.Fatal(err)
	}
	s := subject{&scenario.Node{Machine: machine}, t}
	if err := lab.Wait(deadline(t, lab.Hang), "the boot to end with a unit that failed", func(ctx context.Context) (bool, error) {
		// It exits non-zero in this state.
		state, err := s.Run(ctx, "sh", "-c", "systemctl is-system-running || true")
		return strings.TrimSpace(state) == "degraded", err
	}); err != nil {
		t.Fatal(err)
	}

	status, err := s.Status(t.Context())
	if err != nil || status.State != "waiting" || !strings.Contains(status.Why, "unknown key") {
		t.Errorf("it is %s: %s (%v)", status.State, status.Why, err)
	}
	if said := s.run(t, "journalctl --boot --unit=xivo-firstboot --output=cat"); !strings.Contains(said, `unknown key "peer"`) || !strings.Contains(said, "status=2/INVALIDARGUMENT") {
		t.Errorf("the unit's journal does not say what is wrong:\n%s", said)
	}
	if id := s.uuid(t); id != uuid.Nil.String() {
		t.Errorf("its UUID is %s: an image has none until it becomes", id)
	}
	if left := s.run(t, "ls /var/lib/xivo-firstboot"); left != "kv.json\nseal.json" && left != "kv.json\nlock\nseal.json" {
		t.Errorf("something was begun: %q", left)
	}
	// It is nobody, so it must not run as somebody.
	if out := s.run(t, "systemctl is-active consul rabbitmq-server xivo-confd || true"); strings.Contains("\n"+out, "\nactive") {
		t.Errorf("daemons run without an identity: %s", out)
	}

	if err := s.Poweroff(deadline(t, lab.Hang)); err != nil {
		t.Fatal(err)
	}
	err = machine.Reseed("iid-corrected", []byte("#cloud-config\nxivo:\n  version: 1\n  peers: []\n  secret: seven small boats left harbour today\n"))
	if err == nil {
		err = s.PowerOn(t.Context())
	}
	if err == nil {
		err = s.WaitRunning(deadline(t, lab.Hang))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.run(t, "xivo-firstboot status --wait")
	s.is(t, "alone", "")
	if id := s.uuid(t); id == uuid.Nil.String() {
		t.Error("it has no UUID of its own")
	}
}
