package firewall_test

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
)

var (
	overlay = settings{
		Network: firewall.Network{Interface: "xivo-mesh", Range: netip.MustParsePrefix("100.88.0.0/16")},
		Doors:   firewall.Doors{ConsulUser: "4712"},
	}
	direct = settings{Network: firewall.Network{Interface: "wg0"}, Doors: firewall.Doors{ConsulUser: "4712"}}
)

// Who asks in these tests.
const (
	root     = 0
	somebody = 4711
	consul   = 4712
)

var (
	// guarded are closed to the LAN, and guardedUDP too.
	guarded    = []int{4369, 8300, 8301, 8302, 9483, 9495, 15672, 25672}
	guardedUDP = []int{8301, 8302, 9483}
	// everybodys are what phones, people and programs of a XiVO's LAN use.
	everybodys    = []int{22, 80, 443, 5003, 5060, 5672, 8667, 9484, 9486, 9497, 9500}
	everybodysUDP = []int{69, 5060, 9484, 10000}
	// peers are what members ask.
	peers    = []int{5672, 8300, 8302, 9483, 9486, 9495, 9497, 9500}
	peersUDP = []int{8302, 9483}

	all = slices.Concat(guarded, everybodys, []int{69, 8400, 8500, 10000})
)

func TestANeighbourReachesNothingOfTheMesh(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.node.listen(t, all...)
		closed := slices.Concat(
			// The overlay address is the node's by any interface, for Linux.
			at("tcp", all, overNode), at("udp", all, overNode),
			at("tcp", guarded, lanNode, lanNode6), at("udp", guardedUDP, lanNode, lanNode6),
		)
		open := slices.Concat(at("tcp", everybodys, lanNode, lanNode6), at("udp", everybodysUDP, lanNode, lanNode6))
		s.neighbour.wants(t, answers, root, slices.Concat(closed, open)...)

		s.node.set(t, overlay)
		s.neighbour.wants(t, nothing, root, closed...)
		s.neighbour.wants(t, answers, root, open...)
	})
}

func TestWhoClaimsAMembersAddressIsNotHeard(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		heard := s.node.listen(t, 5060, 5061)
		s.neighbour.ip(t, "addr add "+overMember+"/32 dev lo", "route replace "+lanNode+" dev eth0 src "+overMember)
		// One after the other on one link: what was heard of the later one tells that
		// the earlier one is through.
		ask := func() []string {
			s.neighbour.wants(t, nothing, root, "udp "+lanNode+":5060")
			s.neighbour.ip(t, "route del "+lanNode)
			s.neighbour.wants(t, answers, root, "udp "+lanNode+":5061")
			return strings.Fields(heard.ask(t, ""))
		}
		if got := ask(); !slices.Contains(got, overMember) {
			t.Fatalf("without a firewall, heard of %s", got)
		}
		s.node.set(t, overlay)
		heard.kill()
		heard = s.node.listen(t, 5060, 5061)
		s.neighbour.ip(t, "route replace "+lanNode+" dev eth0 src "+overMember)
		if got := ask(); slices.Contains(got, overMember) || !slices.Contains(got, lanNeighbour) {
			t.Errorf("heard of %s", got)
		}
	})
}

func TestAMemberReachesWhatPeersNeedAndNothingElse(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.node.listen(t, all...)
		s.member.listen(t, 5672)
		open := slices.Concat(at("tcp", peers, overNode), at("udp", peersUDP, overNode),
			[]string{"ping " + overNode}, at("fragments", peersUDP, overNode))
		closed := slices.Concat(
			at("tcp", less(all, peers...), overNode), at("udp", less(all, peersUDP...), overNode),
			at("tcp", all, overNode6), at("udp", all, overNode6), // the overlay carries no IPv6
			at("tcp", []int{22}, lanNode),
		)
		s.member.wants(t, answers, root, slices.Concat(open, closed)...)

		s.node.set(t, overlay)
		s.member.wants(t, answers, root, open...)
		s.member.wants(t, nothing, root, closed...)
		s.node.wants(t, answers, somebody, "tcp "+overMember+":5672")

		// A rule of the operator's own has its say after ours.
		s.node.run(t, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", "9486", "-j", "DROP")
		s.member.wants(t, nothing, root, "tcp "+overNode+":9486")
	})
}

func TestNothingIsForwardedIntoTheMeshOrOutOfIt(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		in, out := at("tcp", []int{5672}, overMember), at("tcp", []int{5672}, lanNeighbour)
		in, out = append(in, "udp "+overMember+":5672"), append(out, "udp "+lanNeighbour+":5672")
		for _, want := range []string{answers, nothing} {
			if want == nothing {
				s.node.set(t, overlay)
			}
			member, neighbour := s.member.listen(t, 5672), s.neighbour.listen(t, 5672)
			s.neighbour.wants(t, want, root, in...)
			s.member.wants(t, want, root, out...)
			// No packet of one way, not only no answer.
			for _, p := range []*process{member, neighbour} {
				if heard := p.ask(t, ""); (heard != "") != (want == answers) {
					t.Errorf("%s wanted, and heard of %q", want, heard)
				}
				p.kill()
			}
		}
	})
}

func TestAGatewayThatAnswersForAMemberSeesNoPacket(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.neighbour.ip(t, "route del 100.88.0.0/16", "addr add "+overMember+"/32 dev lo")
		s.neighbour.listen(t, 5672, 9483, 7)
		s.node.ip(t, "link del xivo-mesh") // as while the service is down
		watch := s.neighbour.self(t, "watch")
		if got := watch.line(t); got != "ready" {
			t.Fatal(got)
		}
		// What comes by until a packet to somewhere else, which is sent last.
		seen := func() (got []string) {
			s.node.wants(t, answers, root, "udp "+lanNeighbour+":7")
			for {
				to := watch.line(t)
				if to == lanNeighbour {
					return got
				}
				got = append(got, to)
			}
		}
		to := []string{"tcp " + overMember + ":5672", "udp " + overMember + ":9483"}
		s.node.wants(t, answers, somebody, to...)
		if got := seen(); !slices.Contains(got, overMember) {
			t.Fatalf("without a firewall, the gateway sees %s", got)
		}
		s.node.set(t, overlay)
		s.node.wants(t, nothing, somebody, to...)
		s.node.wants(t, nothing, root, to...)
		if got := seen(); slices.Contains(got, overMember) {
			t.Errorf("the gateway sees %s", got)
		}
	})
}

func TestLocalDoorsAreShutAtOnce(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.node.listen(t, 5672, 8300, 8400, 8500, 15672)
		s.member.listen(t, 5672, 8300)
		s.neighbour.listen(t, 53, 80)
		local := []string{"127.0.0.1", "::1", lanNode, lanNode6, overNode}
		management := at("tcp", []int{15672}, local...)
		cli := at("tcp", []int{8400}, local...)
		rpc := at("tcp", []int{8300}, overNode, lanNode, overMember)
		metadata := at("tcp", []int{80}, cloud4, cloud6)
		free := slices.Concat(at("tcp", []int{5672, 8500}, local...), at("udp", []int{53}, cloud4), at("tcp", []int{53}, cloud4, cloud6))
		for _, user := range []int{root, somebody, consul} {
			s.node.wants(t, answers, user, slices.Concat(management, cli, rpc, metadata, free)...)
		}

		s.node.set(t, overlay)
		s.node.wants(t, refused, somebody, slices.Concat(management, cli, rpc, metadata)...)
		s.node.wants(t, answers, somebody, free...)
		s.node.wants(t, answers, root, slices.Concat(management, cli, metadata, free, []string{"tcp 127.0.0.1:8300"})...)
		s.node.wants(t, refused, root, rpc...)
		s.node.wants(t, answers, consul, slices.Concat(cli, rpc, free)...)
		s.node.wants(t, refused, consul, slices.Concat(management, metadata)...)

		open := overlay
		open.Doors.MetadataOpen = true
		s.node.set(t, open)
		s.node.wants(t, answers, somebody, metadata...)
		s.node.wants(t, refused, somebody, management...)
	})
}

func TestConnectionsSurviveTheChains(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.node.listen(t, 22, 5672, 15672)
		s.member.listen(t, 5672)
		var talks []*process
		for _, c := range []struct {
			from *machine
			to   string
		}{
			{s.member, overNode + ":5672"},
			{s.member, overNode + ":22"}, // and no new one
			{s.node, overMember + ":5672"},
			{s.neighbour, lanNode + ":22"},
			{s.node, "127.0.0.1:15672"}, // somebody's
		} {
			p := c.from.self(t, "talk", "FIREWALL_AT="+c.to, "FIREWALL_USER=4711")
			if got := p.line(t); got != "ready" {
				t.Fatal(got)
			}
			says(t, p, "before")
			talks = append(talks, p)
		}
		for range 2 {
			s.node.set(t, overlay)
			for _, p := range talks {
				says(t, p, "after")
			}
		}
	})
}

func TestAllowOpensTwoPortsToThose(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		s.node.listen(t, all...)
		s.neighbour.ip(t, "addr add 192.0.2.77/24 dev eth0")
		for allow, source := range map[string]string{lanNeighbour: lanNeighbour, "192.0.2.64/28": "192.0.2.77", "0.0.0.0/0": "192.0.2.77"} {
			a := overlay
			a.Doors.Allow = []string{allow}
			s.node.set(t, a)
			s.neighbour.ip(t, "route replace "+lanNode+" dev eth0 src "+source)
			s.neighbour.wants(t, answers, root, at("tcp", []int{9495, 15672}, lanNode)...)
			s.neighbour.wants(t, nothing, root, slices.Concat(
				at("tcp", less(guarded, 9495, 15672), lanNode), at("udp", guardedUDP, lanNode),
				at("tcp", guarded, lanNode6), at("tcp", []int{9495, 15672}, overNode))...)
		}
		a := overlay
		a.Doors.Allow = []string{"192.0.2.77"}
		s.node.set(t, a)
		s.neighbour.ip(t, "route replace "+lanNode+" dev eth0 src "+lanNeighbour)
		s.neighbour.wants(t, nothing, root, at("tcp", guarded, lanNode)...)
	})
}

func TestOnAnOperatorsNetworkOnlyTheMeshsPortsAreClosedElsewhere(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "wg0")
		s.node.listen(t, all...)
		s.member.listen(t, 5672, 8300)
		s.neighbour.listen(t, 80)
		s.node.set(t, direct)
		s.member.wants(t, answers, root, slices.Concat(at("tcp", all, overNode, overNode6), at("udp", all, overNode, overNode6))...)
		s.neighbour.wants(t, nothing, root, slices.Concat(
			at("tcp", guarded, lanNode, lanNode6, overNode), at("udp", guardedUDP, lanNode, lanNode6, overNode))...)
		s.neighbour.wants(t, answers, root, slices.Concat(
			at("tcp", everybodys, lanNode, lanNode6), at("udp", everybodysUDP, lanNode, lanNode6))...)
		s.neighbour.ip(t, "route replace "+overMember+" via "+lanNode)
		s.neighbour.wants(t, answers, root, "tcp "+overMember+":5672") // the operator's routing

		s.node.wants(t, refused, somebody, slices.Concat(
			at("tcp", []int{15672, 8400}, "127.0.0.1", "::1"), at("tcp", []int{8300}, overNode, overNode6, overMember), at("tcp", []int{80}, cloud4, cloud6))...)
		s.node.wants(t, answers, consul, at("tcp", []int{8300}, overNode, overMember)...)
	})
}

func TestWhatOthersDidIsSeenAndMended(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		m := newMachine(t)
		m.path = path
		m.run(t, "iptables", "-A", "INPUT", "-p", "udp", "--dport", "5060", "-j", "DROP")
		m.run(t, "ip6tables", "-A", "OUTPUT", "-p", "udp", "--dport", "5060", "-j", "DROP")
		if a := m.ask(t, overlay); len(a.Diff) != 6 {
			t.Errorf("before: %q", a.Diff)
		}
		m.set(t, overlay)
		as := m.rules(t)
		if strings.Count(as, "--dport 5060") != 2 || strings.Index(as, "-A INPUT -j "+firewall.In) > strings.Index(as, "-A INPUT -p udp") {
			t.Errorf("the rules of others are gone, or come first:\n%s", as)
		}
		m.set(t, overlay)
		if again := m.rules(t); again != as {
			t.Errorf("the second time, it is\n%s\nand was\n%s", again, as)
		}

		for what, commands := range map[string][]string{
			"all rules of IPv4 are gone":  {"iptables -F", "iptables -A INPUT -p udp --dport 5060 -j DROP"},
			"all rules of IPv6 are gone":  {"ip6tables -F", "ip6tables -A OUTPUT -p udp --dport 5060 -j DROP"},
			"all chains of IPv4 are gone": {"iptables -F", "iptables -X", "iptables -A INPUT -p udp --dport 5060 -j DROP"},
			"a jump is gone":              {"ip6tables -D FORWARD -j XIVO-MESH-FWD"},
			"a jump is doubled":           {"iptables -A INPUT -j XIVO-MESH-IN", "iptables -I INPUT -j XIVO-MESH-IN"},
			"a rule lets everybody in":    {"iptables -I XIVO-MESH-IN -j ACCEPT"},
			"a rule is gone":              {"ip6tables -D XIVO-MESH-IN -p tcp --dport 8300 -j DROP"},
			"two rules changed places":    {"iptables -D XIVO-MESH-IN 1", "iptables -I XIVO-MESH-IN 2 -i lo -j RETURN"},
			"a rule is doubled":           {"iptables -A XIVO-MESH-IN -p tcp --dport 8300 -j DROP"},
			"an earlier version was here": {"iptables -N XIVO-MESH", "iptables -A XIVO-MESH -j DROP", "iptables -I INPUT -j XIVO-MESH"},
		} {
			for _, c := range commands {
				m.run(t, strings.Fields(c)...)
			}
			if a := m.ask(t, overlay); len(a.Diff) == 0 || a.Error != "" {
				t.Errorf("%s, and is not seen: %+v", what, a)
			}
			m.set(t, overlay)
			if got := m.rules(t); !sameLines(got, as) {
				t.Errorf("%s, and became\n%s", what, got)
			}
		}

		m.set(t, direct) // another mode
		if got := m.rules(t); strings.Contains(got, "xivo-mesh") {
			t.Errorf("of the overlay there is left:\n%s", got)
		}
		m.run(t, "iptables", "-N", "XIVO-MESH")
		m.run(t, "iptables", "-A", "INPUT", "-j", "XIVO-MESH")
		m.set(t, settings{Absent: true})
		if got := m.rules(t); strings.Contains(got, "XIVO-MESH") || strings.Count(got, "--dport 5060") != 2 {
			t.Errorf("removed, there is\n%s", got)
		}
		m.set(t, settings{Absent: true})
	})
}

func sameLines(a, b string) bool {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	slices.Sort(as)
	slices.Sort(bs)
	return slices.Equal(as, bs)
}

// backend is what the commands in a folder of each are.
func backend(t *testing.T, path string) string {
	t.Helper()
	to, err := os.Readlink(filepath.Join(path, "backend"))
	check(t, err)
	return to
}

// instead puts a script before a command of iptables; "$real" is the command.
func instead(t *testing.T, path, name, script string) {
	t.Helper()
	file := filepath.Join(path, name)
	real := filepath.Join(t.TempDir(), name)
	check(t, os.Symlink(backend(t, path), real))
	check(t, os.Remove(file))
	check(t, os.WriteFile(file, []byte("#!/bin/sh\nreal="+real+"\n"+script+"\nexec \"$real\" \"$@\"\n"), 0o755))
}

// The kernel here has the owner match: a command that refuses it as iptables does
// stands in for one without.
func TestAKernelWithoutRulesByUserGetsTheOthers(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		s := newSite(t, path, "xivo-mesh")
		refuse := `rules=$(cat)
case $rules in *owner*) echo "iptables-restore: line 60 failed" >&2; exit 1;; esac
printf '%s\n' "$rules" | "$real" "$@"
exit`
		instead(t, path, "iptables-restore", refuse)
		s.node.listen(t, 8300, 15672)
		a := s.node.set(t, overlay)
		if len(a.Gaps) != 1 || !strings.Contains(a.Gaps[0], "rules by user") {
			t.Errorf("told: %q", a.Gaps)
		}
		s.neighbour.wants(t, nothing, root, at("tcp", []int{8300, 15672}, lanNode, lanNode6, overNode)...)
		s.node.wants(t, answers, somebody, "tcp 127.0.0.1:15672")
		s.node.wants(t, refused, somebody, "tcp [::1]:15672") // the other family has it

		instead(t, path, "iptables-restore", "") // as after a boot with another kernel
		s.node.run(t, "iptables", "-F")
		if a := s.node.set(t, overlay); len(a.Gaps) != 0 {
			t.Errorf("told still: %q", a.Gaps)
		}
		s.node.set(t, settings{Absent: true})
	})
}

func TestWithoutIp6tablesIPv4IsGuardedAndItIsTold(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		t.Run("refused by the kernel", func(t *testing.T) {
			instead(t, path, "ip6tables", `echo "ip6tables v1.4.14: can't initialize ip6tables table 'filter': Table does not exist (do you need to insmod?)" >&2
exit 3`)
			guardsIPv4(t, newSite(t, path, "xivo-mesh"))
		})
		t.Run("not installed", func(t *testing.T) {
			s := newSite(t, path, "xivo-mesh")
			only(t, s.node, "iptables", "iptables-restore")
			guardsIPv4(t, s)
		})
	})
}

func guardsIPv4(t *testing.T, s site) {
	t.Helper()
	s.node.listen(t, 8300)
	if a := s.node.set(t, overlay); len(a.Gaps) != 1 || !strings.Contains(a.Gaps[0], "IPv6") {
		t.Errorf("told: %q", a.Gaps)
	}
	s.neighbour.wants(t, nothing, root, "tcp "+lanNode+":8300")
	s.node.set(t, settings{Absent: true})
}

func TestWithoutIptablesItSaysWhatToDo(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		m := newMachine(t)
		m.path = path
		only(t, m)
		s := overlay
		s.Apply = true
		if a := m.ask(t, s); !strings.Contains(a.Applied, "apt-get install iptables") || !strings.Contains(a.Error, "apt-get install iptables") {
			t.Errorf("%+v", a)
		}
		// Nothing was ever set.
		if a := m.ask(t, settings{Absent: true, Apply: true}); a.Applied != "" || len(a.Diff) != 0 {
			t.Errorf("removed: %+v", a)
		}
	})
}

// only leaves a machine these commands of iptables, and nothing else in sbin.
func only(t *testing.T, m *machine, names ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		program, err := os.ReadFile(filepath.Join(m.path, name))
		check(t, err)
		check(t, os.WriteFile(filepath.Join(dir, name), program, 0o755))
	}
	m.path = dir
	m.run(t, "mount", "-t", "tmpfs", "tmpfs", "/usr/sbin")
	if link, err := os.Lstat("/sbin"); err == nil && link.IsDir() {
		m.run(t, "mount", "-t", "tmpfs", "tmpfs", "/sbin")
	}
}

// Only the legacy back end has a lock.
func TestTheLockOfAnotherProgramIsWaitedFor(t *testing.T) {
	each(t, func(t *testing.T, path string) {
		if strings.HasSuffix(t.Name(), "nft") {
			t.Skip("nft has no lock")
		}
		wait := func(t *testing.T) {
			m := newMachine(t)
			m.path = path
			m.set(t, direct)
			lock := start(t, m.command("flock", "/run/xtables.lock", "sh", "-c", "echo locked; exec cat"))
			if got := lock.line(t); got != "locked" {
				t.Fatal(got)
			}
			s := overlay
			s.Apply = true
			p := m.asking(t, s)
			select {
			case text, ok := <-p.out:
				t.Fatalf("did not wait: %q, %v", text, ok)
			case <-time.After(silence):
			}
			lock.kill()
			if a := readAnswer(t, p); a.Applied != "" || a.Error != "" || len(a.Diff) != 0 || len(a.Gaps) != 0 {
				t.Errorf("then %+v", a)
			}
		}
		t.Run("by iptables", wait)
		// As versions without -w do: 1.4.14 takes no lock itself, and later ones end at once.
		for _, name := range []string{"iptables", "iptables-restore", "ip6tables", "ip6tables-restore"} {
			instead(t, path, name, `case $1 in -w) echo "`+name+` v1.4.14: unknown option \"-w\"" >&2; exit 2;; esac
flock -n /run/xtables.lock true || { echo "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?" >&2; exit 4; }`)
		}
		t.Run("by us", wait)
		t.Run("not for ever", func(t *testing.T) {
			m := newMachine(t)
			m.path = path
			lock := start(t, m.command("flock", "/run/xtables.lock", "sh", "-c", "echo locked; exec cat"))
			if got := lock.line(t); got != "locked" {
				t.Fatal(got)
			}
			if a := m.ask(t, overlay); !strings.Contains(a.Error, "another program kept the lock") {
				t.Errorf("%+v", a)
			}
		})
	})
}
