package converge_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// booting is a node that has become, before Consul and the broker start. The
// kernel's rules are a file.
func booting(t *testing.T) (n *node.Node, rules func() string, log *bytes.Buffer) {
	t.Helper()
	bin, written := t.TempDir(), filepath.Join(t.TempDir(), "rules")
	write := func(name, text string, mode os.FileMode) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "iptables"), "#!/bin/sh\necho '-P INPUT ACCEPT'\n", 0o755)
	write(filepath.Join(bin, "iptables-restore"), "#!/bin/sh\ncat >"+written+"\n", 0o755)
	t.Setenv("PATH", bin+":/usr/bin:/bin")

	p := &platform.Platform{Root: t.TempDir()}
	write(p.Path(platform.VersionFile), "16.03", 0o644)
	p, err := platform.Detect(p.Root)
	if err != nil {
		t.Fatal(err)
	}
	write(p.Path(platform.ConsulConfigDir, "config.json"), "{}", 0o600)
	write(p.Path(platform.ConsulDataDir, "serf/remote.snapshot"), "alive: others", 0o600)
	write(p.Path(platform.RabbitConfigDir, "enabled_plugins"), "[rabbitmq_federation,rabbitmq_management].\n", 0o644)
	write(p.Path(node.LockFile), "", 0o600)

	log = new(bytes.Buffer)
	n = node.New(p, slog.New(slog.NewTextHandler(log, nil)))
	n.Document.Config = cloudinit.Alone()
	n.Document.Config.Peers, n.Document.Config.Firewall.Allow = []string{"192.0.2.10"}, []string{"192.0.2.99"}
	n.Journal = n.NewJournal(node.Identity{UUID: uuid.New(), Hostname: "xivo", Name: "xivo-0123abcd", Advertise: "192.0.2.1"})
	if err := n.WriteState(node.MembersFile, []mesh.Member{{UUID: uuid.New(), Host: "b", Address: "192.0.2.20"}}); err != nil {
		t.Fatal(err)
	}
	return n, func() string { raw, _ := os.ReadFile(written); return string(raw) }, log
}

func TestThePortsAreGuardedBeforeConsulStarts(t *testing.T) {
	n, rules, _ := booting(t)
	converge.Guard(t.Context(), n)
	got := rules()
	for _, want := range []string{"-s 192.0.2.10/32 -j RETURN", "-s 192.0.2.20/32 -j RETURN", "-s 192.0.2.99/32 -j RETURN", "--dport 8300 -j DROP", "-I INPUT 1 -j XIVO-MESH"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %s in\n%s", want, got)
		}
	}
	if strings.Contains(got, "8302") {
		t.Errorf("newcomers cannot gossip:\n%s", got)
	}
}

func TestTheFirewallThatADocumentSwitchesOffIsLeftAsItIs(t *testing.T) {
	n, rules, _ := booting(t)
	n.Document.Config.Firewall.Enabled = false
	if err := n.KeepDocument(); err != nil {
		t.Fatal(err)
	}
	converge.Guard(t.Context(), n)
	converge.Isolate(t.Context(), n)
	if got := rules(); got != "" {
		t.Errorf("rules were set:\n%s", got)
	}
}

func TestABootIsNotHeldBackByTheFirewall(t *testing.T) {
	n, _, log := booting(t)
	t.Setenv("PATH", t.TempDir())
	n.Document.Config.Firewall.Allow = []string{"not an address"}
	converge.Guard(t.Context(), n)
	if !strings.Contains(log.String(), "not guarded") {
		t.Errorf("it is not told: %s", log)
	}
}

func TestAMachineInDoubtIsKeptOutOfTheMesh(t *testing.T) {
	n, rules, log := booting(t)
	if err := n.KeepDocument(); err != nil {
		t.Fatal(err)
	}
	key := n.Credentials().GossipKey().Reveal()
	n.Document.Config.Secret = "of a seed that came with the other instance id"
	converge.Isolate(t.Context(), n)
	if log.Len() > 0 {
		t.Fatal(log)
	}
	got := rules()
	for _, address := range []string{"192.0.2.10", "192.0.2.20"} {
		if strings.Contains(got, address) {
			t.Errorf("%s is let in:\n%s", address, got)
		}
	}
	if !strings.Contains(got, "-s 192.0.2.99/32 -j RETURN") {
		t.Errorf("whom the document allows is not let in:\n%s", got)
	}
	if !strings.Contains(got, "-p udp -m udp --dport 8302 -j DROP") {
		t.Errorf("it can be joined:\n%s", got)
	}
	var consul map[string]any
	raw, err := os.ReadFile(n.Platform.Path(platform.ConsulConfigDir, "interconnection.json"))
	if err == nil {
		err = json.Unmarshal(raw, &consul)
	}
	if err != nil || consul["retry_join_wan"] != nil || consul["datacenter"] != "xivo-0123abcd" {
		t.Errorf("Consul's configuration: %v, %v", consul, err)
	}
	if consul["encrypt"] != key {
		t.Error("Consul is given the key of another mesh")
	}
	if _, err := os.Stat(n.Platform.Path(platform.ConsulDataDir, "serf/remote.snapshot")); err == nil {
		t.Error("Consul remembers the WAN")
	}
	plugins, err := os.ReadFile(n.Platform.Path(platform.RabbitConfigDir, "enabled_plugins"))
	if err != nil || strings.Contains(string(plugins), "federation") {
		t.Errorf("the broker starts with %s (%v)", plugins, err)
	}
	var members []mesh.Member
	if err := n.ReadState(node.MembersFile, &members); err != nil || len(members) != 1 {
		t.Errorf("it forgot its members: %v, %v", members, err)
	}
}

// Until its first pass, too: a peer that finds its ports open would bring it back.
func TestANodeThatLeftIsGuardedAsOneAtBoot(t *testing.T) {
	n, rules, _ := booting(t)
	if err := errors.Join(n.WriteState(node.MembersFile, []mesh.Member{}), n.WriteState(node.MarksFile, converge.Marks{LeftWAN: "it left"})); err != nil {
		t.Fatal(err)
	}
	converge.Guard(t.Context(), n)
	got := rules()
	if strings.Contains(got, "192.0.2.10") || !strings.Contains(got, "-s 192.0.2.99/32 -j RETURN") || !strings.Contains(got, "-p udp -m udp --dport 8302 -j DROP") {
		t.Errorf("its peer is let in, or whom the document allows is not, or it can be joined:\n%s", got)
	}
}
