package standin

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// machine is what xivo-service acts on.
type machine struct {
	units   map[string]bool // those there are, and whether they run
	broken  string          // this one does not start
	dropped int             // rules that close SIP
	did     []string        // what changed something
}

func (m *machine) exec(_ context.Context, name string, args ...string) (string, int) {
	command := name + " " + strings.Join(args, " ")
	last := args[len(args)-1]
	switch {
	case strings.HasPrefix(command, "systemctl show"):
		if _, ok := m.units[strings.TrimSuffix(last, ".service")]; !ok {
			return "LoadState=not-found\n", 0
		}
		return "LoadState=loaded\n", 0
	case strings.HasPrefix(command, "systemctl status"):
		if m.units[last] {
			return "", 0
		}
		return "", 3
	case command == "iptables -n --list":
		return "Chain INPUT (policy ACCEPT)\n" + strings.Repeat("DROP       udp  --  0.0.0.0/0  0.0.0.0/0  udp dpt:5060\n", m.dropped), 0
	case command == "iptables -I INPUT 1 -p udp --dport 5060 -j DROP":
		m.dropped++
	case command == "iptables -D INPUT -p udp --dport 5060 -j DROP":
		m.dropped--
	case args[0] == "start" && last == m.broken:
		return "", 1
	case args[0] == "start" || args[0] == "stop":
		if _, ok := m.units[last]; !ok {
			return "", 5
		}
		m.units[last] = args[0] == "start"
	}
	m.did = append(m.did, command)
	return "", 0
}

func newMachine(running bool) *machine {
	m := &machine{units: map[string]bool{}}
	for _, u := range []string{"xivo-confd", "xivo-dird", "xivo-ctid", "consul", "rabbitmq-server", "postgresql"} {
		m.units[u] = running
	}
	return m
}

func serviceOn(t *testing.T, m *machine) (*Service, *bytes.Buffer) {
	var out bytes.Buffer
	dir := t.TempDir()
	return &Service{Release: xivo1603, Marker: filepath.Join(dir, "xivo/disabled"), Default: filepath.Join(dir, "default"), Stdout: &out, Exec: m.exec}, &out
}

func TestServiceStopClosesSIPAndLeavesTheBrokersRunning(t *testing.T) {
	m := newMachine(true)
	s, _ := serviceOn(t, m)
	if code := s.Run(t.Context(), "stop", ""); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := []string{
		"iptables -I INPUT 1 -p udp --dport 5060 -j DROP",
		"systemctl stop xivo-dird", "systemctl stop xivo-ctid", "systemctl stop xivo-confd",
	}
	if diff := cmp.Diff(want, m.did); diff != "" {
		t.Error(diff)
	}
	for _, unit := range []string{"consul", "rabbitmq-server", "postgresql"} {
		if !m.units[unit] {
			t.Errorf("%s was stopped", unit)
		}
	}
	s.Run(t.Context(), "stop", "")
	if m.dropped != 1 {
		t.Errorf("%d rules after a second stop, want one", m.dropped)
	}
}

func TestServiceStopStopsMonitFirst(t *testing.T) {
	m := newMachine(true)
	m.units["monit"] = true
	s, _ := serviceOn(t, m)
	s.Run(t.Context(), "stop", "default")
	if m.did[1] != "systemctl stop monit" {
		t.Errorf("did %q", m.did)
	}
	s.Run(t.Context(), "start", "default")
	if got := m.did[len(m.did)-2]; got != "systemctl start monit" {
		t.Errorf("did %q", m.did)
	}
}

func TestServiceAllIncludesTheBrokers(t *testing.T) {
	m := newMachine(true)
	s, _ := serviceOn(t, m)
	s.Run(t.Context(), "stop", "all")
	for unit, running := range m.units {
		if running {
			t.Errorf("%s still runs", unit)
		}
	}
}

func TestServiceStartOpensSIP(t *testing.T) {
	m := newMachine(false)
	m.dropped = 1
	s, out := serviceOn(t, m)
	if code := s.Run(t.Context(), "start", ""); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := []string{
		"systemctl start xivo-confd", "systemctl start xivo-ctid", "systemctl start xivo-dird",
		"iptables -D INPUT -p udp --dport 5060 -j DROP",
	}
	if diff := cmp.Diff(want, m.did); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(out.String(), "XiVO fully booted") {
		t.Error(out)
	}
}

func TestServiceStartThatFailsOpensSIPAndStopsThere(t *testing.T) {
	m := newMachine(false)
	m.dropped, m.broken = 1, "xivo-ctid"
	m.units["monit"] = false
	s, _ := serviceOn(t, m)
	if code := s.Run(t.Context(), "start", ""); code != 1 {
		t.Errorf("exit code %d, want 1", code)
	}
	if m.dropped != 0 {
		t.Error("SIP stays closed")
	}
	if m.units["xivo-dird"] || m.units["monit"] {
		t.Error("what comes after the failure was started")
	}
}

func TestServiceRestart(t *testing.T) {
	m := newMachine(true)
	s, _ := serviceOn(t, m)
	if code := s.Run(t.Context(), "restart", ""); code != 0 || m.dropped != 0 || !m.units["xivo-dird"] {
		t.Errorf("%d %+v", code, m)
	}
}

func TestServiceDisabled(t *testing.T) {
	m := newMachine(false)
	s, out := serviceOn(t, m)
	write(t, s.Default, "# kept\nstartup=yes\nexport XIVO_UUID="+uuidA+"\n")
	if code := s.Run(t.Context(), "disable", ""); code != 0 {
		t.Fatal(out)
	}
	if text, _ := os.ReadFile(s.Default); string(text) != "# kept\nstartup=no\nexport XIVO_UUID="+uuidA+"\n" {
		t.Errorf("/etc/default/xivo is now %q", text)
	}
	// confd is not of the list that the marker holds down.
	if code := s.Run(t.Context(), "start", ""); code != 0 || m.units["xivo-ctid"] || m.units["xivo-dird"] || !m.units["xivo-confd"] {
		t.Errorf("%d %+v", code, m)
	}
	for range 2 {
		if code := s.Run(t.Context(), "enable", ""); code != 0 {
			t.Fatal(out)
		}
	}
	if s.Run(t.Context(), "start", ""); !m.units["xivo-ctid"] {
		t.Errorf("%+v", m)
	}
	if text, _ := os.ReadFile(s.Default); !strings.Contains(string(text), "startup=yes\nexport XIVO_UUID="+uuidA) {
		t.Errorf("/etc/default/xivo is now %q", text)
	}
}

func TestServiceOf1520WritesTheDefaultsAnew(t *testing.T) {
	s, out := serviceOn(t, newMachine(false))
	s.Release = xivo1520
	write(t, s.Default, "# lost\nstartup=yes\nexport XIVO_UUID="+uuidA+"\n")
	if code := s.Run(t.Context(), "disable", ""); code != 0 {
		t.Fatal(out)
	}
	if text, _ := os.ReadFile(s.Default); string(text) != "startup=no\n" {
		t.Errorf("/etc/default/xivo is now %q", text)
	}
}

func TestServiceStatus(t *testing.T) {
	m := newMachine(true)
	s, _ := serviceOn(t, m)
	if code := s.Run(t.Context(), "status", ""); code != 0 {
		t.Errorf("all running: %d", code)
	}
	m.units["xivo-ctid"] = false
	if code := s.Run(t.Context(), "status", ""); code != 1 {
		t.Errorf("one stopped: %d", code)
	}
	if len(m.did) != 0 {
		t.Errorf("it changed something: %q", m.did)
	}
}

func TestServiceTakesAnUnknownActionForASuccess(t *testing.T) {
	m := newMachine(true)
	s, out := serviceOn(t, m)
	if code := s.Run(t.Context(), "halt", ""); code != 0 || len(m.did) != 0 || !strings.Contains(out.String(), "stand-in") {
		t.Errorf("%d %q %s", code, m.did, out)
	}
}

func TestServiceOfACommandThatIsNotThere(t *testing.T) {
	var out bytes.Buffer
	s := &Service{Stdout: &out}
	if _, code := s.exec(t.Context(), "/nonexistent/command"); code != 127 {
		t.Errorf("exit code %d, want a shell's 127", code)
	}
	if _, code := s.exec(t.Context(), "false"); code != 1 {
		t.Errorf("exit code %d, want the command's own", code)
	}
}
