package become_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// As long as the KV was not exported, what holds it stays, whatever failed.
func TestConsulKeepsItsStateUntilTheKVIsExported(t *testing.T) {
	const config = `{"acl_master_token": "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a", "ports": {"https": 1}}`
	for name, c := range map[string]struct{ config, consul, says string }{
		"the private Consul does not start":   {config, "#!/bin/sh\necho no licence; exit 1\n", "no licence"},
		"there is no Consul program":          {config, "", "executable file not found"},
		"the configuration has no token":      {`{"ports": {"https": 1}}`, "#!/bin/sh\n", "no acl_master_token"},
		"the configuration cannot be read":    {`{"acl_master_token": `, "#!/bin/sh\n", "config.json"},
		"the configuration has no HTTPS port": {`{"acl_master_token": "t"}`, "#!/bin/sh\n", "no HTTPS port"},
	} {
		t.Run(name, func(t *testing.T) {
			const raft = platform.ConsulDataDir + "/raft/raft.db"
			n := nodetest.Server(t, "16.03", nil)
			n.Platform.Init = &nodetest.Manager{AllDown: true}
			nodetest.Put(t, n, raft, "the KV")
			nodetest.Put(t, n, platform.ConsulConfigDir+"/config.json", c.config)
			if c.consul != "" {
				nodetest.Put(t, n, "/bin/consul", c.consul)
				if err := os.Chmod(n.Platform.Path("/bin/consul"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("PATH", n.Platform.Path("/bin"))

			p := nodetest.Only(t, become.Phase, kvexport.ExportStep, kvexport.EmptyStep)
			if _, err := n.Runner().Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
			if got := nodetest.Read(t, n, raft); got != "the KV" {
				t.Errorf("Consul's state is %q", got)
			}
			if n.Journal.Done("become.kv-export") {
				t.Error("the next run would go on without an export")
			}
			// Nor does the step itself do it, should the order ever change.
			emptied, _ := become.Phase.Step(kvexport.EmptyStep)
			r, err := emptied.Open(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Apply(t.Context()); err == nil || nodetest.Read(t, n, raft) != "the KV" {
				t.Error("consul-state would empty it")
			}
		})
	}
}

// A run that was killed at the end of its export leaves a copy of all of the KV.
func TestNoCopyOfTheKVIsLeftOnceItIsBack(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	for _, file := range []string{kvexport.File, kvexport.File + ".new", consul.AtRestDir + "/data/raft/raft.db"} {
		nodetest.Put(t, n, file, "the KV")
	}
	if _, err := n.Runner().Run(t.Context(), nodetest.Only(t, become.SettlePhase, kvexport.RetireStep)); err != nil {
		t.Fatal(err)
	}
	for name, content := range nodetest.Files(t, n.Platform.Root) {
		if strings.Contains(content, "the KV") {
			t.Errorf("left is %s", name)
		}
	}
}

// It is people's contacts, and a broker that does not start is no reason to keep
// them away.
func TestTheKVIsBackWhateverTheBrokerDoes(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errors.New("the broker is down") }
	nodetest.Put(t, n, kvexport.File, "the KV")

	back := false
	p := become.SettlePhase
	p.Steps = slices.Clone(p.Steps)
	i := slices.IndexFunc(p.Steps, func(s engine.Step[*node.Node]) bool { return s.Name == kvexport.ImportStep })
	p.Steps[i].Open = func(context.Context, *node.Node) (engine.Resource, error) {
		return engine.New(func(context.Context) ([]string, error) {
			if back {
				return nil, nil
			}
			return []string{"the KV is not there"}, nil
		}, func(context.Context) error { back = true; return nil }), nil
	}
	if _, err := n.Runner().Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "the broker is down") {
		t.Errorf("settle says: %v", err)
	}
	if _, err := os.Stat(n.Platform.Path(kvexport.File)); !back || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the KV is back: %t; its export: %v", back, err)
	}
}
