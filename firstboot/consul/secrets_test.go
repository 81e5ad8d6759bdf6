package consul_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

func TestSecretsAreFoundWhereverConsulKeepsThem(t *testing.T) {
	secrets := func(p *platform.Platform) []string {
		var found []string
		err := consul.Secrets(p, func(name, text string) {
			if text = strings.TrimSpace(text); text != "" {
				found = append(found, name+": "+text)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	p := &platform.Platform{Root: t.TempDir()}
	if found := secrets(p); found != nil {
		t.Errorf("on a machine without Consul: %q", found)
	}
	write(t, p, packaged, `{"acl_datacenter": "xivo", "acl_master_token": "`+token+`", "ports": {"https": 8500}}`, 0o600)
	write(t, p, ours, `{"encrypt": "`+gossipKey+`", "acl": {"tokens": {"agent": "agents-token"}}, "acl_agent_token": "another"}`, 0o600)
	write(t, p, masterTok, token+"\n", 0o600)
	write(t, p, daemonTok, "token: of-the-daemons\n", 0o600)
	write(t, p, platform.ConsulDataDir+"/serf/remote.keyring", `["`+gossipKey+`", "an-older-key"]`, 0o600)
	write(t, p, platform.ConsulDataDir+"/node-id", "the-node\n", 0o600)
	want := []string{
		"Consul's master token: " + token, "Consul's master token: of-the-daemons", "Consul's node id: the-node",
		"a gossip key of Consul's: " + gossipKey, "a gossip key of Consul's: an-older-key",
		"a token of Consul's: agents-token", "a token of Consul's: another",
	}
	if diff := cmp.Diff(want, secrets(p)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	write(t, p, packaged, `{"acl_master_token": `, 0o600)
	if err := consul.Secrets(p, func(string, string) {}); err == nil || strings.Contains(err.Error(), token) {
		t.Errorf("of a damaged file: %v", err)
	}
}

func TestAnExportWithoutLiveTokens(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kv.json")
	r := consul.ExportWithout(file, "xivo/xivo-auth/")
	same(t, r)
	const kept = `{
 "format": 1,
 "entries": [
  {
   "key": "xivo/private/b1f0/contacts/personal/1/firstname",
   "value": "QWxpY2U=",
   "flags": 7
  }
 ]
}
`
	live := strings.Replace(kept, `"entries": [`, `"entries": [{"key": "xivo/xivo-auth/tokens/1fa3/token", "value": "", "flags": 0}, {"key": "xivo/xivo-auth/token-names/b", "value": "", "flags": 0},`, 1)
	if err := os.WriteFile(file, []byte(live), 0o600); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"the export has entries below xivo/xivo-auth/ (2)"}, becomes(t, r)); diff != "" {
		t.Error(diff)
	}
	raw, err := os.ReadFile(file)
	if diff := cmp.Diff(kept, string(raw)); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	if err := os.WriteFile(file, []byte(live[:90]), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Diff(t.Context()); err == nil {
		t.Error("half of an export is taken for a whole one")
	}
}

func TestNamesBelowAPrefix(t *testing.T) {
	n := free(t)
	p := layout(t, "names", n)
	c, _ := start(t, p)
	fill(t, raw(t, n), []*api.KVPair{
		{Key: "xivo/xivo-auth/tokens/0c1b/token"}, {Key: "xivo/xivo-auth/tokens/0c1b/auth_id"}, {Key: "xivo/xivo-auth/tokens/77aa/token"},
		{Key: "xivo/xivo-auth/token-names/b"}, {Key: "xivo/private/alice"},
	})
	names, err := c.Names(t.Context(), "xivo/xivo-auth/tokens/")
	if diff := cmp.Diff([]string{"0c1b", "77aa"}, names); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
