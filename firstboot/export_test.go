package firstboot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
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
			n := nodeOf(t)
			n.Journal.Identity.UUID = uuid.New()
			n.Platform = &platform.Platform{Root: t.TempDir()}
			raft := n.Platform.Path(platform.ConsulDataDir, "raft/raft.db")
			bin := filepath.Join(n.Platform.Root, "bin")
			t.Setenv("PATH", bin)
			for file, content := range map[string]string{
				raft: "the KV",
				n.Platform.Path(platform.ConsulConfigDir, "config.json"): c.config,
				filepath.Join(bin, "consul"):                             c.consul,
				n.Platform.Path(platform.StateDir, "document.yml"):       "",
			} {
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if content == "" {
					continue
				}
				if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}

			p := BecomePhase
			p.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool {
				return s.Name != "kv-export" && s.Name != "consul-state"
			})
			if _, err := n.Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
			if got, err := os.ReadFile(raft); string(got) != "the KV" {
				t.Errorf("Consul's state is gone: %v", err)
			}
			if n.Journal.Done("become.kv-export") {
				t.Error("the next run would go on without an export")
			}
			// Nor does the step itself do it, should the order ever change.
			emptied, err := consulEmptied(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			if err := emptied.Apply(t.Context()); err == nil {
				t.Error("consul-state would empty it")
			}
		})
	}
}

// What is wrong with the configuration is found while all is as it was.
func TestConsulKeepsItsStateWhereItsConfigurationIsRefused(t *testing.T) {
	const token = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	for name, c := range map[string]struct{ site, consul, says string }{
		"by a file that comes after ours":  {`{"node_name": "site"}`, "#!/bin/sh\n", "zz-site.json"},
		"by Consul":                        {`{}`, "#!/bin/sh\necho no such key; exit 1\n", "no such key"},
		"by XiVO's package, with no token": {`{}`, "#!/bin/sh\n", "dpkg-reconfigure consul"},
	} {
		t.Run(name, func(t *testing.T) {
			n := cutOff(t)
			n.Journal.Identity.Name, n.Journal.Identity.Advertise = "xivo-b-99999999", "10.0.0.2"
			n.Config.Secret = "a secret of this mesh"
			put(t, n, raftFile, "the KV")
			put(t, n, platform.ConsulConfigDir+"/config.json", `{"acl_master_token": "`+token+`"}`)
			put(t, n, platform.ConsulConfigDir+"/zz-site.json", c.site)
			put(t, n, platform.ConsulDataDir+"/default_xivo_consul_token.yml", "token: "+token+"\n")
			if c.says != "dpkg-reconfigure consul" {
				put(t, n, platform.ConsulDataDir+"/master_token", token+"\n")
			}
			put(t, n, "/bin/consul", c.consul)
			if err := os.Chmod(n.Platform.Path("/bin/consul"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", n.Platform.Path("/bin"))
			for _, step := range []string{"consul-config", "consul-token"} {
				delete(n.Journal.Steps, "become."+step)
			}
			_, _, err := n.Begin(t.Context(), false)
			if err == nil {
				_, err = n.Run(t.Context(), BecomePhase)
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error that says %q", err, c.says)
			}
			if got := contents(t, n, raftFile); got != "the KV" {
				t.Errorf("Consul's state is %q", got)
			}
			if _, err := os.Stat(n.Platform.Path(platform.ConsulConfigDir, "interconnection.json")); err == nil {
				t.Error("our file is there")
			}
		})
	}
}

// A run that was killed at the end of its export leaves a copy of all of the KV.
func TestNoCopyOfTheKVIsLeftOnceItIsBack(t *testing.T) {
	n := nodeOf(t)
	n.Platform = &platform.Platform{Root: t.TempDir()}
	for _, file := range []string{exportFile, platform.StateDir + "/consul-at-rest/data/raft/raft.db"} {
		if err := os.MkdirAll(filepath.Dir(n.Platform.Path(file)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(n.Platform.Path(file), []byte("the KV"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := SettlePhase
	p.Steps = slices.DeleteFunc(slices.Clone(p.Steps), func(s Step) bool { return s.Name != "kv-retire" })
	if _, err := n.Run(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(n.Platform.Path(platform.StateDir)); err != nil || len(left) > 0 {
		t.Errorf("left is %v, %v", left, err)
	}
}

// It is people's contacts, and a broker that does not start is no reason to keep
// them away.
func TestTheKVIsBackWhateverTheBrokerDoes(t *testing.T) {
	n := nodeOf(t)
	n.Platform = &platform.Platform{Root: t.TempDir()}
	n.Journal = newJournal(n.Platform.Path(journalFile), n.Instance, n.Identity())
	n.brokerErr = errors.New("the broker is down")
	put(t, n, exportFile, "the KV")

	back := false
	p := SettlePhase
	p.Steps = slices.Clone(p.Steps)
	i := slices.IndexFunc(p.Steps, func(s Step) bool { return s.Name == "kv-import" })
	p.Steps[i].Open = func(context.Context, *Node) (Resource, error) {
		return resource{
			diff: func(context.Context) ([]string, error) {
				if back {
					return nil, nil
				}
				return []string{"the KV is not there"}, nil
			},
			apply: func(context.Context) error { back = true; return nil },
		}, nil
	}
	if _, err := n.Run(t.Context(), p); err == nil || !strings.Contains(err.Error(), "the broker is down") {
		t.Errorf("settle says: %v", err)
	}
	if _, err := os.Stat(n.Platform.Path(exportFile)); !back || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the KV is back: %t; its export: %v", back, err)
	}
}
