package consul

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const token = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"

// server lays out a machine's Consul files as XiVO's package does.
func server(t *testing.T, name string, https int) *platform.Platform {
	t.Helper()
	p := &platform.Platform{Root: t.TempDir()}
	write := func(name string, content []byte, mode fs.FileMode) {
		file := p.Path(name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, content, mode); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`{
  "acl_datacenter": %[1]q, "acl_default_policy": "deny", "acl_master_token": %[2]q,
  "datacenter": %[1]q, "server": true, "bootstrap_expect": 1,
  "bind_addr": "127.0.0.1", "advertise_addr": "127.0.0.1", "client_addr": "127.0.0.1",
  "data_dir": %[3]q, "cert_file": %[4]q, "key_file": %[5]q, "disable_update_check": true,
  "performance": {"raft_multiplier": 1},
  "ports": {"dns": -1, "http": -1, "https": %[6]d}
}`, name, token, p.Path(platform.ConsulDataDir), p.Path(platform.CertificateFile), p.Path(platform.CertificateKey), https)
	cert, key := keyPair(t)
	write(platform.CertificateFile, cert, 0o644)
	write(platform.CertificateKey, key, 0o600)
	write(packagedFile, []byte(config), 0o600)
	write(masterTokenFile, []byte(token+"\n"), 0o600)
	write(daemonTokenFile, []byte("consul:\n  token: "+token+"\n"), 0o640)
	if err := os.MkdirAll(p.Path(platform.StateDir), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// keyPair is a certificate as XiVO's: CN=*, no names.
func keyPair(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "*"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// binary returns the real Consul, or skips.
func binary(t *testing.T) string {
	t.Helper()
	b := os.Getenv("XIVO_CONSUL")
	if b == "" {
		t.Skip("needs Consul: `make test` sets XIVO_CONSUL")
	}
	return b
}

// agent starts a real Consul on the server's files and returns its client, and
// what stops it. Ports that are not given are free ones.
func agent(t *testing.T, p *platform.Platform, extra map[string]any) (*Client, func()) {
	t.Helper()
	args := []string{"agent", "-config-dir", p.Path(platform.ConsulConfigDir)}
	ports, err := freePorts(3)
	if err != nil {
		t.Fatal(err)
	}
	if extra == nil {
		extra = map[string]any{}
	}
	extra["ports"] = map[string]int{"server": ports[0], "serf_lan": ports[1], "serf_wan": ports[2]}
	raw, err := json.Marshal(extra)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "zz.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t), append(args, "-config-file", file)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	c, err := Dial(p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := c.WaitLeader(ctx); err != nil {
		t.Fatal(err)
	}
	return c, stop
}

func port(t *testing.T) int {
	t.Helper()
	ports, err := freePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports[0]
}

func settings() Settings {
	return Settings{Name: "xivo-0123abcd", Advertise: "192.168.1.124", JoinWAN: []string{"192.168.1.125"}, MasterToken: "mesh-token", GossipKey: "a2V5"}
}

func TestConfigFileHoldsWhatTheVersionKnows(t *testing.T) {
	p := server(t, "xivo", 8500)
	for name, c := range map[string]struct {
		traits platform.Traits
		change func(*Settings)
		want   map[string]any
	}{
		"0.6": {platform.Traits{}, func(*Settings) {}, map[string]any{
			"datacenter": "xivo-0123abcd", "acl_datacenter": "xivo-0123abcd", "node_name": "xivo-0123abcd",
			"bind_addr": "0.0.0.0", "advertise_addr": "192.168.1.124", "client_addr": "127.0.0.1",
			"skip_leave_on_interrupt": true, "retry_join_wan": []any{"192.168.1.125"}, "encrypt": "a2V5", "acl_master_token": "mesh-token",
		}},
		"0.7 and the first node, not encrypted": {platform.Traits{ConsulPerformance: true}, func(s *Settings) { s.JoinWAN, s.GossipKey = nil, "" }, map[string]any{
			"datacenter": "xivo-0123abcd", "acl_datacenter": "xivo-0123abcd", "node_name": "xivo-0123abcd",
			"bind_addr": "0.0.0.0", "advertise_addr": "192.168.1.124", "client_addr": "127.0.0.1",
			"skip_leave_on_interrupt": true, "acl_master_token": "mesh-token", "performance": map[string]any{"raft_multiplier": 1.0},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p.Traits = c.traits
			s := settings()
			c.change(&s)
			file := ConfigFile(p, s)
			if diff, err := file.Diff(t.Context()); err != nil || len(diff) != 1 || strings.Contains(diff[0], "mesh-token") {
				t.Fatalf("before: %v, %v", diff, err)
			}
			if err := file.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff, err := file.Diff(t.Context()); err != nil || diff != nil {
				t.Errorf("after: %v, %v", diff, err)
			}
			raw, err := os.ReadFile(p.Path(configFile))
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
			if st, _ := os.Stat(p.Path(configFile)); st.Mode().Perm() != 0o600 {
				t.Errorf("others may read the token: %v", st.Mode())
			}
		})
	}
}

func TestTokenFilesChangeTheTokenAndNothingElse(t *testing.T) {
	p := server(t, "xivo", 8500)
	before := map[string]string{}
	for _, place := range tokenPlaces {
		raw, err := os.ReadFile(p.Path(place.file))
		if err != nil {
			t.Fatal(err)
		}
		before[place.file] = string(raw)
	}
	tokens := TokenFiles(p, "mesh-token")
	diff, err := tokens.Diff(t.Context())
	if err != nil || len(diff) != 3 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if s := strings.Join(diff, ""); strings.Contains(s, token) || strings.Contains(s, "mesh-token") {
		t.Error("the plan tells a token")
	}
	if err := tokens.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := tokens.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	for _, place := range tokenPlaces {
		raw, err := os.ReadFile(p.Path(place.file))
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(before[place.file], token, "mesh-token"); string(raw) != want {
			t.Errorf("%s: %s", place.file, cmp.Diff(want, string(raw)))
		}
	}
	if st, _ := os.Stat(p.Path(daemonTokenFile)); st.Mode().Perm() != 0o640 {
		t.Errorf("the daemons cannot read their token: %v", st.Mode())
	}
}

func TestATokenFileThatLooksOtherwiseIsAnError(t *testing.T) {
	p := server(t, "xivo", 8500)
	if err := os.WriteFile(p.Path(packagedFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := TokenFiles(p, "mesh-token").Diff(t.Context()); err == nil || !strings.Contains(err.Error(), packagedFile) {
		t.Errorf("%v", err)
	}
}

func TestEmptiedLeavesTheTokens(t *testing.T) {
	p := server(t, "xivo", 8500)
	for _, name := range []string{"raft/raft.db", "serf/remote.snapshot", "serf/local.keyring", "services/a", "checks/b", "tmp/c", "node-id"} {
		file := p.Path(platform.ConsulDataDir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := Emptied(p)

	running := p.Path("/proc/77")
	if err := os.MkdirAll(running, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(running, "cmdline"), []byte("/usr/bin/consul\x00agent\x00-config-dir\x00/etc/consul/xivo\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := state.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "77") {
		t.Errorf("it was removed under a running agent: %v", err)
	}
	if diff, err := state.Diff(t.Context()); err != nil || len(diff) != 6 {
		t.Fatalf("before: %v, %v", diff, err)
	}

	if err := os.RemoveAll(running); err != nil {
		t.Fatal(err)
	}
	if err := state.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := state.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	for _, name := range []string{masterTokenFile, daemonTokenFile} {
		if _, err := os.Stat(p.Path(name)); err != nil {
			t.Error(err)
		}
	}
}

// awkward is what a KV may hold.
var awkward = []api.KVPair{
	{Key: "xivo/private/1/contacts/personal/a b", Value: []byte("plain")},
	{Key: "xivo/private/1/100%/?x=y&z#é/日本", Value: []byte("\xff\xfe\x00binary")},
	{Key: "xivo/empty", Value: nil},
	{Key: "xivo/null", Value: []byte("null")},
	{Key: "xivo/flags", Value: []byte("f"), Flags: math.MaxUint64},
	{Key: "xivo/flags42", Value: []byte("f"), Flags: 42},
	{Key: "elsewhere/key", Value: []byte("not XiVO's")},
	{Key: "xivo/folder/", Value: []byte("a key that ends like a folder")},
	{Key: "xivo/big", Value: make([]byte, 500<<10)},
	{Key: "xivo/xivo-auth/tokens/t1", Value: []byte("a live token")},
}

func fill(t *testing.T, c *Client) {
	t.Helper()
	for _, p := range awkward {
		if _, err := c.api.KV().Put(&p, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheKVSurvivesAResetBitForBit(t *testing.T) {
	p := server(t, "xivo", port(t))
	c, stop := agent(t, p, nil)
	fill(t, c)
	file := p.Path(platform.StateDir, "kv.json")
	if err := c.Export(t.Context(), file); err != nil {
		t.Fatal(err)
	}
	if st, _ := os.Stat(file); st.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v", st.Mode())
	}
	if err := c.Export(t.Context(), file); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second export: %v", err)
	}
	stop()
	if err := Emptied(p).Apply(t.Context()); err != nil {
		t.Fatal(err)
	}

	c, _ = agent(t, p, nil)
	kv := c.Import(file, "xivo/xivo-auth/")
	if diff, err := kv.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if err := kv.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := kv.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	got := map[string]entry{}
	entries, err := c.entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got[e.Key] = e
	}
	for _, want := range awkward {
		e, ok := got[want.Key]
		if strings.HasPrefix(want.Key, "xivo/xivo-auth/") {
			if ok {
				t.Errorf("%s came back: a live token is shared", want.Key)
			}
			continue
		}
		if !ok || string(e.Value) != string(want.Value) || e.Flags != want.Flags {
			t.Errorf("%q came back as %d bytes with flags %d (there: %v)", want.Key, len(e.Value), e.Flags, ok)
		}
	}
	if len(got) != len(awkward)-1 {
		t.Errorf("%d keys, want %d", len(got), len(awkward)-1)
	}
}

func TestTheKVIsExportedAtRest(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(binary(t))+":"+os.Getenv("PATH"))
	p := server(t, "xivo", port(t))
	c, stop := agent(t, p, nil)
	fill(t, c)
	stop()
	file := p.Path(platform.StateDir, "kv.json")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := ExportAtRest(ctx, p, file); err != nil {
		t.Fatal(err)
	}
	c, _ = agent(t, p, nil)
	if diff, err := c.Import(file).Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("the export and the KV differ: %v, %v", diff, err)
	}
	if left, _ := filepath.Glob(p.Path(platform.StateDir, ".consul-*")); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

// A token that is not taken reads an empty KV without an error on old versions;
// whatever it reads, nothing may follow from it.
func TestAWrongTokenExportsNothing(t *testing.T) {
	p := server(t, "xivo", port(t))
	c, _ := agent(t, p, nil)
	fill(t, c)
	if err := os.WriteFile(p.Path(masterTokenFile), []byte("11111111-2222-3333-4444-555555555555"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong, err := Dial(p)
	if err != nil {
		t.Fatal(err)
	}
	file := p.Path(platform.StateDir, "kv.json")
	err = wrong.Export(t.Context(), file)
	if err == nil || strings.Contains(err.Error(), "11111111") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Error("an export was written all the same")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := wrong.WaitLeader(ctx); err == nil {
		t.Error("the agent is called ready")
	}
}

func TestAnotherServersCertificateIsRefused(t *testing.T) {
	p := server(t, "xivo", port(t))
	agent(t, p, nil)
	cert, _ := keyPair(t)
	if err := os.WriteFile(p.Path(platform.CertificateFile), cert, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := Dial(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.LocalServices(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), token) {
		t.Errorf("%v", err)
	}
}

// Two servers, each a datacenter of its own with the same token: as two nodes.
func TestTwoNodesSeeEachOthersServices(t *testing.T) {
	ctx := t.Context()
	a := server(t, "xivo-a", port(t))
	clientA, _ := agent(t, a, map[string]any{"bind_addr": "127.0.0.2", "advertise_addr": "127.0.0.2"})
	b := server(t, "xivo-b", port(t))
	wan := wanPort(t, clientA)
	clientB, _ := agent(t, b, map[string]any{"bind_addr": "127.0.0.3", "advertise_addr": "127.0.0.3"})

	service := Registration{ID: "xivo-mesh", Name: "xivo-mesh", Address: "10.0.0.1", Tags: []string{"uuid=1", "version=16.03"}}
	r := clientA.Registered(service)
	if diff, err := r.Diff(ctx); err != nil || len(diff) != 1 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if err := r.Apply(ctx); err != nil {
		t.Fatal(err)
	}
	service.Tags[0], service.Tags[1] = service.Tags[1], service.Tags[0]
	if diff, err := clientA.Registered(service).Diff(ctx); err != nil || diff != nil {
		t.Errorf("the order of tags counts: %v, %v", diff, err)
	}

	if members, err := clientB.WANMembers(ctx); err != nil || len(members) != 1 || members[0].Datacenter != "xivo-b" || !members[0].Alive {
		t.Errorf("before the join: %+v, %v", members, err)
	}
	err := clientB.JoinedWAN([]string{"127.0.0.9:1", fmt.Sprintf("127.0.0.2:%d", wan)}).Apply(ctx)
	if err == nil || !strings.Contains(err.Error(), "127.0.0.9:1") || strings.Contains(err.Error(), "127.0.0.2") {
		t.Errorf("only the first address cannot be joined: %v", err)
	}
	if diff, err := clientB.JoinedWAN([]string{"127.0.0.2"}).Diff(ctx); err != nil || diff != nil {
		t.Errorf("after the join: %v, %v", diff, err)
	}

	deadline, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		found, err := clientB.Services(ctx, "xivo-a", "xivo-mesh")
		if err == nil && len(found) == 1 && found[0].Address == "10.0.0.1" {
			break
		}
		select {
		case <-deadline.Done():
			t.Fatalf("B does not see A's service: %+v, %v", found, err)
		case <-time.After(again):
		}
	}
	if found, err := clientB.Services(ctx, "xivo-a", "xivo-ctid"); err != nil || found != nil {
		t.Errorf("a service that is not there: %+v, %v", found, err)
	}
	if _, err := clientB.Services(ctx, "nowhere", "xivo-mesh"); err == nil {
		t.Error("a datacenter that is not there answers")
	}
}

// wanPort asks the agent for the port that the test gave it.
func wanPort(t *testing.T, c *Client) int {
	t.Helper()
	self, err := c.api.Agent().Self()
	if err != nil {
		t.Fatal(err)
	}
	return int(self["DebugConfig"]["SerfPortWAN"].(float64))
}
