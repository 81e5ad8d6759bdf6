package converge_test

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/converge"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// booting is a node that has become, before Consul and the broker start.
func booting(t *testing.T) (n *node.Node, log *bytes.Buffer) {
	t.Helper()
	n = nodetest.Server(t, "16.03", nil)
	nodetest.Put(t, n, platform.ConsulConfigDir+"/config.json", "{}")
	nodetest.Put(t, n, platform.ConsulDataDir+"/serf/remote.snapshot", "alive: others")
	nodetest.Put(t, n, platform.RabbitConfigDir+"/enabled_plugins", "[rabbitmq_federation,rabbitmq_management].\n")
	log = new(bytes.Buffer)
	n.Log = slog.New(slog.NewTextHandler(log, nil))
	n.Document.Config = cloudinit.Alone()
	if err := n.WriteState(node.MembersFile, []mesh.Member{{UUID: uuid.New(), Host: "b", Address: "192.0.2.20"}}); err != nil {
		t.Fatal(err)
	}
	return n, log
}

func TestANodeIsNotHeldBackByTheFirewall(t *testing.T) {
	n, log := booting(t)
	n.Document.Config.Firewall.Allow = []string{"not an address"} // else it would be this machine's
	converge.Guard(t.Context(), n)
	if !strings.Contains(log.String(), "not guarded") {
		t.Errorf("it is not told: %s", log)
	}
	log.Reset()
	n.Document.Config.Firewall.Enabled = false
	converge.Guard(t.Context(), n)
	if log.Len() > 0 {
		t.Errorf("the document switches it off, and it is tried: %s", log)
	}
}

func TestAMachineInDoubtIsKeptOutOfTheMesh(t *testing.T) {
	n, log := booting(t)
	if err := n.KeepDocument(); err != nil {
		t.Fatal(err)
	}
	key := n.Credentials().GossipKey().Reveal()
	n.Document.Config.Secret = "of a seed that came with the other instance id"
	converge.Isolate(t.Context(), n)
	if log.Len() > 0 {
		t.Fatal(log)
	}
	var consul map[string]any
	raw, err := os.ReadFile(n.Platform.Path(platform.ConsulConfigDir, "interconnection.json"))
	if err == nil {
		err = json.Unmarshal(raw, &consul)
	}
	if err != nil || consul["retry_join_wan"] != nil || consul["datacenter"] != "xivo-b-99999999" {
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
