package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// withConsul lets our commands find Consul.
func withConsul(t *testing.T) {
	t.Helper()
	t.Setenv("PATH", filepath.Dir(binary(t))+":"+os.Getenv("PATH"))
}

func TestAConfigurationThatConsulRefusesIsFoundBeforeItIsStarted(t *testing.T) {
	withConsul(t)
	for _, c := range []struct {
		name, file, content string
		says                []string // of the error; nil where there is none
	}{
		{"no file of others", "", "", nil},
		{"one that goes well with ours", "00-site.json", `{"log_level": "WARN"}`, nil},
		{"text that is no JSON", "00-site.json", `{`, []string{"00-site.json"}},
		{"the comment of the procedure's own example", "site.json", "{\"log_level\": \"WARN\" // for now\n}", []string{"site.json"}},
		{"a key that Consul does not know", "00-site.json", `{"advertise_adr": "10.0.0.1"}`, []string{"00-site.json", "invalid config key advertise_adr"}},
		{"a value of another type", "00-site.json", `{"rejoin_after_leave": "perhaps"}`, []string{"rejoin_after_leave"}},
		{"no server any more", "site.json", `{"server": false}`, []string{"requires 'server = true'"}},
		{"a later file that takes our name", "site.json", `{"node_name": "other"}`, []string{"site.json", "node_name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := layout(t, "xivo", free(t))
			if c.file != "" {
				write(t, p, platform.ConsulConfigDir+"/"+c.file, c.content, 0o600)
			}
			r := consul.ConfigFile(p, settings())
			check(t, r.Apply(t.Context()))
			diff, err := r.Diff(t.Context())
			if diff != nil || (err == nil) != (c.says == nil) {
				t.Fatalf("%q, %v", diff, err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q is not said: %v", part, err)
				}
			}
			if err != nil && (strings.Contains(err.Error(), meshToken) || strings.Contains(err.Error(), gossipKey)) {
				t.Errorf("a secret is told: %v", err)
			}
		})
	}
}

// Consul 0.5 and 0.6 know configtest, and no validate.
func TestAnOldConsulIsAskedInItsOwnWords(t *testing.T) {
	for _, c := range []struct{ name, script, says string }{
		{"it agrees", `[ "$1" = configtest ] && [ "$2" = -config-dir ] && [ -d "$3" ]`, ""},
		{"it does not", `echo "Error decoding 'site.json'" >&2; exit 1`, "Error decoding 'site.json'"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bin := t.TempDir()
			script := "#!/bin/sh\n[ \"$1\" = configtest ] || { echo 'usage: consul [--version] [--help] <command> [<args>]' >&2; exit 127; }\n" + c.script + "\n"
			check(t, os.WriteFile(filepath.Join(bin, "consul"), []byte(script), 0o755))
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			p := layout(t, "xivo", free(t))
			r := consul.ConfigFile(p, settings())
			check(t, r.Apply(t.Context()))
			diff, err := r.Diff(t.Context())
			if diff != nil || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q, %v; want %q", diff, err, c.says)
			}
		})
	}
}

func TestALeaderThatComesLateIsWaitedFor(t *testing.T) {
	n := free(t)
	p := layout(t, "xivo", n)
	behind := free(t).https
	run(t, p, fmt.Sprint("-https-port=", behind))
	var old server.OldConsul
	old.Leaderless.Store(100) // asked 5 times a second
	oldConsul(t, p, behind, &old)
	c := dial(t, p)
	if old.Leaderless.Load() >= 0 {
		t.Error("it was not waited for")
	}

	old.Leaderless.Store(1 << 20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := c.WaitLeader(ctx); err == nil || !strings.Contains(err.Error(), "no leader") {
		t.Errorf("one that never comes: %v", err)
	}
}

func TestAPortThatIsTaken(t *testing.T) {
	t.Run("by another program, which is not taken for Consul", func(t *testing.T) {
		n := free(t)
		p := layout(t, "xivo", n)
		stranger := layout(t, "stranger", n)
		oldConsul(t, stranger, 0, new(server.OldConsul))
		c, err := consul.Dial(p)
		check(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := c.WaitLeader(ctx); err == nil || !strings.Contains(err.Error(), fmt.Sprint("127.0.0.1:", n.https)) || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%v", err)
		}
	})
	t.Run("while the KV is exported at rest: Consul's sentence", func(t *testing.T) {
		withConsul(t)
		n := free(t)
		p := layout(t, "xivo", n)
		_, stop := start(t, p)
		stop()
		l, err := net.Listen("tcp4", fmt.Sprint("127.0.0.1:", n.server))
		check(t, err)
		defer l.Close()
		file := p.Path(platform.StateDir, "kv.json")
		if err := consul.ExportAtRest(t.Context(), p, file); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%v", err)
		}
		if _, err := os.Stat(file); err == nil {
			t.Error("exported all the same")
		}
	})
}

// A keyring that is there beats the configuration: a node that kept the one of
// another mesh could speak to nobody.
func TestAKeyringThatWasLeftIsNotUsed(t *testing.T) {
	const newKey secret.Secret = "ZmVkY2JhOTg3NjU0MzIxMA=="
	n := free(t)
	p := layout(t, "xivo", n)
	keys := func() []string {
		t.Helper()
		rings, err := raw(t, n).Operator().KeyringList(nil)
		check(t, err)
		var keys []string
		for _, ring := range rings {
			for key := range ring.Keys {
				keys = append(keys, key)
			}
		}
		return keys
	}
	mesh := func(key secret.Secret) consul.Settings {
		return consul.Settings{Name: "xivo", Advertise: "127.0.0.1", MasterToken: token, GossipKey: key}
	}
	any := cmpopts.SortSlices(func(a, b string) bool { return a < b })

	becomes(t, consul.ConfigFile(p, mesh(gossipKey)))
	_, stop := start(t, p)
	if d := cmp.Diff([]string{gossipKey, gossipKey}, keys(), any); d != "" {
		t.Fatal(d)
	}
	stop()

	becomes(t, consul.ConfigFile(p, mesh(newKey)))
	_, stop = start(t, p)
	if d := cmp.Diff([]string{gossipKey, gossipKey}, keys(), any); d != "" {
		t.Errorf("the keyring no longer beats the configuration, so what follows proves nothing: %s", d)
	}
	stop()

	becomes(t, consul.NoState(p))
	start(t, p)
	if d := cmp.Diff([]string{newKey.Reveal(), newKey.Reveal()}, keys(), any); d != "" {
		t.Error(d)
	}
}

// An emulated machine needs a minute for each answer, and the first boot asks for a
// plan, before the file is written, and after.
func TestConsulIsAskedOnceAboutOneConfiguration(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	bin := t.TempDir()
	asked := filepath.Join(bin, "asked")
	for name, content := range map[string]string{
		p.Path(platform.ConsulConfigDir, "config.json"): `{}`,
		filepath.Join(bin, "consul"):                    "#!/bin/sh\necho >>" + asked + "\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(content), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	config := func(name string) engine.Resource {
		return consul.ConfigFile(p, consul.Settings{Name: name, Advertise: "10.0.0.1", MasterToken: "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"})
	}
	times := func() int {
		raw, _ := os.ReadFile(asked)
		return len(raw)
	}
	for range 2 {
		if err := engine.Ensure(t.Context(), config("asked-once")); err != nil {
			t.Fatal(err)
		}
	}
	if diff, err := config("asked-once").Diff(t.Context()); err != nil || diff != nil || times() != 1 {
		t.Errorf("%v, %v; Consul was asked %d times", diff, err, times())
	}
	if err := engine.Ensure(t.Context(), config("asked-twice")); err != nil || times() != 2 {
		t.Errorf("of another configuration: %v; Consul was asked %d times", err, times())
	}
}
