package consul_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const (
	token     = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	meshToken = "9d7b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3b"
	gossipKey = "MDEyMzQ1Njc4OWFiY2RlZg=="

	packaged  = platform.ConsulConfigDir + "/config.json"
	ours      = platform.ConsulConfigDir + "/interconnection.json"
	masterTok = platform.ConsulDataDir + "/master_token"
	daemonTok = platform.ConsulDataDir + "/default_xivo_consul_token.yml"
	daemonCfg = platform.ConsulDataDir + "/default_xivo_consul_config.yml"
)

type resource interface {
	Diff(context.Context) ([]string, error)
	Apply(context.Context) error
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// becomes applies a resource that differs, and wants it as it should be after.
func becomes(t *testing.T, r resource) []string {
	t.Helper()
	before, err := r.Diff(t.Context())
	check(t, err)
	if before == nil {
		t.Fatal("nothing differs before")
	}
	check(t, r.Apply(t.Context()))
	same(t, r)
	return before
}

func same(t *testing.T, r resource) {
	t.Helper()
	if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
		t.Fatalf("differs: %q, %v", diff, err)
	}
}

func write(t *testing.T, p *platform.Platform, name, content string, mode fs.FileMode) {
	t.Helper()
	file := p.Path(name)
	check(t, os.MkdirAll(filepath.Dir(file), 0o755))
	check(t, os.WriteFile(file, []byte(content), mode))
	check(t, os.Chmod(file, mode))
}

func read(t *testing.T, p *platform.Platform, name string) string {
	t.Helper()
	data, err := os.ReadFile(p.Path(name))
	check(t, err)
	return string(data)
}

type ports struct{ https, http, server, lan, wan int }

func free(t *testing.T) ports {
	t.Helper()
	port := func() int { return server.FreePort(t) }
	return ports{port(), port(), port(), port(), port()}
}

func layout(t *testing.T, name string, n ports) *platform.Platform {
	t.Helper()
	p := &platform.Platform{Root: t.TempDir()}
	cert, key := keyPair(t)
	write(t, p, platform.CertificateFile, cert, 0o644)
	write(t, p, platform.CertificateKey, key, 0o600)
	write(t, p, packaged, fmt.Sprintf(`{
    "acl_datacenter": %[1]q,
    "acl_default_policy": "deny",
    "acl_master_token": %[2]q,
    "advertise_addr": "127.0.0.1",
    "bind_addr": "127.0.0.1",
    "bootstrap_expect": 1,
    "cert_file": %[4]q,
    "client_addr": "127.0.0.1",
    "data_dir": %[3]q,
    "datacenter": %[1]q,
    "disable_update_check": true,
    "key_file": %[5]q,
    "performance": {"raft_multiplier": 1},
    "ports": {
        "dns": -1,
        "http": %[10]d,
        "https": %[6]d,
        "server": %[7]d,
        "serf_lan": %[8]d,
        "serf_wan": %[9]d
    },
    "rejoin_after_leave": true,
    "server": true
}
`, name, token, p.Path(platform.ConsulDataDir), p.Path(platform.CertificateFile), p.Path(platform.CertificateKey), n.https, n.server, n.lan, n.wan, n.http), 0o600)
	write(t, p, masterTok, token, 0o600)
	write(t, p, daemonTok, "consul:\n  token: '"+token+"'\n", 0o640)
	write(t, p, daemonCfg, "consul:\n  scheme: https\n", 0o644)
	check(t, os.MkdirAll(p.Path(platform.StateDir), 0o700))
	return p
}

func keyPair(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "*"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	check(t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(k)
	check(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func binary(t *testing.T) string {
	t.Helper()
	b := os.Getenv("XIVO_CONSUL")
	if b == "" {
		t.Skip("needs Consul: `make test` sets XIVO_CONSUL")
	}
	return b
}

func start(t *testing.T, p *platform.Platform, args ...string) (*consul.Client, func()) {
	t.Helper()
	stop := run(t, p, args...)
	return dial(t, p), stop
}

// run starts the server and does not wait for it.
func run(t *testing.T, p *platform.Platform, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(binary(t), append([]string{"agent", "-config-dir", p.Path(platform.ConsulConfigDir)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	check(t, cmd.Start())
	stop = func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(func() {
		stop()
		if t.Failed() && testing.Verbose() {
			t.Log(log.String())
		}
	})
	return stop
}

// dial returns the client of a server that has a leader.
func dial(t *testing.T, p *platform.Platform) *consul.Client {
	t.Helper()
	c, err := consul.Dial(p)
	check(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	check(t, c.WaitLeader(ctx))
	return c
}

// starter starts the server of a platform, as start does.
type starter func(t *testing.T, p *platform.Platform, args ...string) (*consul.Client, func())

// everyAge runs a test against Consul as it is, and as XiVO's oldest answer.
func everyAge(t *testing.T, test func(t *testing.T, start starter)) {
	t.Run("Consul as it is", func(t *testing.T) { test(t, start) })
	t.Run("with the habits of 0.5", func(t *testing.T) { test(t, startOld) })
}

// startOld puts the habits of an old Consul in front of a new one: on the port
// that the configuration tells, which is all that the client knows.
func startOld(t *testing.T, p *platform.Platform, args ...string) (*consul.Client, func()) {
	t.Helper()
	behind := free(t).https
	stop := run(t, p, append(args, fmt.Sprint("-https-port=", behind))...)
	stopProxy := oldConsul(t, p, behind, new(server.OldConsul))
	return dial(t, p), func() { stopProxy(); stop() }
}

func oldConsul(t *testing.T, p *platform.Platform, behind int, o *server.OldConsul) (stop func()) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(p.Path(platform.CertificateFile), p.Path(platform.CertificateKey))
	check(t, err)
	var config struct {
		Master string `json:"acl_master_token"`
		Ports  struct{ HTTPS int }
	}
	check(t, json.Unmarshal([]byte(read(t, p, packaged)), &config))
	return o.Serve(t, fmt.Sprint("127.0.0.1:", config.Ports.HTTPS), pair, behind, config.Master)
}

// raw is a second way to the API, for what the tests put there: the HTTP port,
// which XiVO leaves off.
func raw(t *testing.T, n ports) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: fmt.Sprintf("127.0.0.1:%d", n.http), Token: token})
	check(t, err)
	return c
}

// register registers a service as a daemon does.
func register(t *testing.T, n ports, token, name string) {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: fmt.Sprintf("127.0.0.1:%d", n.http), Token: token})
	check(t, err)
	check(t, c.Agent().ServiceRegister(&api.AgentServiceRegistration{ID: name, Name: name, Address: "10.0.0.1"}))
}

func settings() consul.Settings {
	return consul.Settings{Name: "xivo-0123abcd", Advertise: "192.168.1.124", MasterToken: meshToken, GossipKey: gossipKey}
}

func TestConfigFileHasTheKeysThatTheVersionKnows(t *testing.T) {
	full := map[string]any{
		"datacenter": "xivo-0123abcd", "acl_datacenter": "xivo-0123abcd", "node_name": "xivo-0123abcd",
		"bind_addr": "0.0.0.0", "advertise_addr": "192.168.1.124", "client_addr": "127.0.0.1",
		"skip_leave_on_interrupt": true, "encrypt": gossipKey, "acl_master_token": meshToken,
	}
	withPerformance := map[string]any{"performance": map[string]any{"raft_multiplier": 1.0}}
	for k, v := range full {
		withPerformance[k] = v
	}
	for name, c := range map[string]struct {
		traits platform.Traits
		want   map[string]any
	}{
		"before 0.7": {platform.Traits{}, full},
		"0.7 and on": {platform.Traits{ConsulPerformance: true}, withPerformance},
	} {
		t.Run(name, func(t *testing.T) {
			p := layout(t, "xivo", free(t))
			p.Traits = c.traits
			diff := becomes(t, consul.ConfigFile(p, settings()))
			if s := strings.Join(diff, " "); strings.Contains(s, meshToken) || strings.Contains(s, gossipKey) {
				t.Errorf("a secret is told: %s", s)
			}
			var got map[string]any
			check(t, json.Unmarshal([]byte(read(t, p, ours)), &got))
			if d := cmp.Diff(c.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Somebody else's values are not told, whatever their names are.
func TestTheDifferenceOfTheConfigFileTellsOnlyWhatMayBeTold(t *testing.T) {
	p := layout(t, "xivo", free(t))
	r := consul.ConfigFile(p, settings())
	becomes(t, r)
	var document map[string]any
	check(t, json.Unmarshal([]byte(read(t, p, ours)), &document))
	for key, value := range map[string]any{
		"acl_token": "hunter2hunter2", "acl_agent_token": "hunter2hunter2", "telemetry": map[string]any{"circonus_api_token": "hunter2hunter2"},
		"datacenter": "xivo-of-hunter2", "encrypt": "hunter2hunter2", "advertise_addr": "192.0.2.7",
	} {
		document[key] = value
	}
	delete(document, "node_name")
	text, err := json.Marshal(document)
	check(t, err)
	check(t, os.WriteFile(p.Path(ours), text, 0o600))
	// Consul need not like it: only what is told counts.
	diff, err := r.Diff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		ours + ": acl_agent_token is not one of ours",
		ours + ": acl_token is not one of ours",
		ours + `: advertise_addr is "192.0.2.7", not "192.168.1.124"`,
		ours + ": datacenter differs",
		ours + ": encrypt differs",
		ours + ": node_name is missing",
		ours + ": telemetry is not one of ours",
	}
	if d := cmp.Diff(want, diff); d != "" {
		t.Error(d)
	}
}

func TestConfigFileThatOthersMayReadOrConsulMayNotDiffers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	p := layout(t, "xivo", free(t))
	check(t, os.Chown(p.Path(packaged), 1234, 1235))
	r := consul.ConfigFile(p, settings())
	becomes(t, r)
	check(t, os.Chmod(p.Path(ours), 0o644))
	becomes(t, r)
	// As a power cut between writing and giving away leaves it.
	check(t, os.Chown(p.Path(ours), 0, 0))
	becomes(t, r)
	st, err := os.Stat(p.Path(ours))
	check(t, err)
	if s := st.Sys().(*syscall.Stat_t); s.Uid != 1234 || s.Gid != 1235 || st.Mode().Perm() != 0o600 {
		t.Errorf("%d:%d %v", s.Uid, s.Gid, st.Mode())
	}
}

func TestConfigFileThatIsOverriddenIsAnError(t *testing.T) {
	p := layout(t, "xivo", free(t))
	r := consul.ConfigFile(p, settings())
	becomes(t, r)
	write(t, p, platform.ConsulConfigDir+"/local.json", `{"datacenter": "other"}`, 0o600)
	if diff, err := r.Diff(t.Context()); err == nil || !strings.Contains(err.Error(), "local.json") {
		t.Errorf("%q, %v", diff, err)
	}
}

func TestUnusableSettingsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*consul.Settings){
		"a dot in the name":         func(s *consul.Settings) { s.Name = "xivo.example" },
		"an IPv6 address":           func(s *consul.Settings) { s.Advertise = "::1" },
		"no token":                  func(s *consul.Settings) { s.MasterToken = "" },
		"a key of the wrong length": func(s *consul.Settings) { s.GossipKey = "a2V5" },
	} {
		t.Run(name, func(t *testing.T) {
			p := layout(t, "xivo", free(t))
			s := settings()
			change(&s)
			if err := consul.ConfigFile(p, s).Apply(t.Context()); err == nil {
				t.Error("taken")
			}
			if _, err := os.Stat(p.Path(ours)); err == nil {
				t.Error("written")
			}
		})
	}
}

func TestTokenFilesChangeNothingButTheToken(t *testing.T) {
	p := layout(t, "xivo", free(t))
	names := []string{masterTok, packaged, daemonTok}
	before := map[string]string{}
	for i, name := range names {
		before[name] = read(t, p, name)
		if os.Getuid() == 0 {
			check(t, os.Chown(p.Path(name), 100+i, 200+i))
		}
	}
	diff := becomes(t, consul.TokenFiles(p, meshToken))
	if s := strings.Join(diff, ""); len(diff) != 3 || strings.Contains(s, token) || strings.Contains(s, meshToken) {
		t.Errorf("%q", diff)
	}
	modes := []fs.FileMode{0o600, 0o600, 0o640}
	for i, name := range names {
		if d := cmp.Diff(strings.ReplaceAll(before[name], token, meshToken), read(t, p, name)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
		st, err := os.Stat(p.Path(name))
		check(t, err)
		if st.Mode().Perm() != modes[i] {
			t.Errorf("%s: %v", name, st.Mode())
		}
		if s := st.Sys().(*syscall.Stat_t); os.Getuid() == 0 && (int(s.Uid) != 100+i || int(s.Gid) != 200+i) {
			t.Errorf("%s: %d:%d", name, s.Uid, s.Gid)
		}
	}
}

func TestEmptiedRefusesWhileConsulRunsAndKeepsTheTokens(t *testing.T) {
	p := layout(t, "xivo", free(t))
	_, stop := start(t, p)
	r := consul.NoState(p)
	if err := r.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "consul") {
		t.Fatalf("emptied under a living Consul: %v", err)
	}
	if _, err := os.Stat(p.Path(platform.ConsulDataDir, "raft/raft.db")); err != nil {
		t.Fatal(err)
	}
	stop()
	becomes(t, r)
	for _, name := range []string{masterTok, daemonTok, daemonCfg} {
		if _, err := os.Stat(p.Path(name)); err != nil {
			t.Error(err)
		}
	}
}

var awkward = []*api.KVPair{
	{Key: "xivo/private/1/contacts/a b+c&d=e;f", Value: []byte("plain")},
	{Key: "xivo/100%/?x=y&z#é/日本", Value: []byte("\xff\xfe\x00binary")},
	{Key: "xivo/%2F%20", Value: []byte("looks encoded")},
	{Key: "xivo/\ufffd", Value: []byte("a real replacement character")},
	{Key: "xivo/empty", Value: nil},
	{Key: "xivo/flags", Value: []byte("f"), Flags: math.MaxUint64},
	{Key: "elsewhere/key", Value: []byte("not XiVO's")},
	{Key: "xivo/folder/", Value: []byte("ends like a folder")},
	{Key: "xivo/big", Value: make([]byte, 500<<10)},
	{Key: "xivo/xivo-auth/tokens/t1", Value: []byte("a live token")},
}

// onlyTxn are keys that no URL carries.
var onlyTxn = []*api.KVPair{
	{Key: "xivo//double", Value: []byte("1"), Flags: math.MaxUint64},
	{Key: "xivo/a/../b", Value: []byte("2")},
	{Key: "/leading", Value: []byte("3")},
	{Key: "xivo/new\nline", Value: []byte("4")},
}

func fill(t *testing.T, c *api.Client, pairs []*api.KVPair) {
	t.Helper()
	for _, pair := range pairs {
		if len(pair.Value) > 100<<10 { // more than a transaction holds
			_, err := c.KV().Put(pair, nil)
			check(t, err)
			continue
		}
		ok, resp, _, err := c.KV().Txn(api.KVTxnOps{{Verb: api.KVSet, Key: pair.Key, Value: pair.Value, Flags: pair.Flags}}, nil)
		if err != nil || !ok {
			t.Fatal(pair.Key, resp, err)
		}
	}
}

func contents(t *testing.T, c *api.Client) map[string]api.KVPair {
	t.Helper()
	pairs, _, err := c.KV().List("", nil)
	check(t, err)
	m := map[string]api.KVPair{}
	for _, p := range pairs {
		m[p.Key] = api.KVPair{Key: p.Key, Value: p.Value, Flags: p.Flags}
	}
	return m
}

func roundTrip(t *testing.T, start starter, pairs []*api.KVPair) {
	n := free(t)
	p := layout(t, "xivo", n)
	c, stop := start(t, p)
	fill(t, raw(t, n), pairs)
	want := contents(t, raw(t, n))
	if len(want) != len(pairs) {
		t.Fatal(len(want))
	}
	delete(want, "xivo/xivo-auth/tokens/t1")

	file := p.Path(platform.StateDir, "kv.json")
	check(t, c.Export(t.Context(), file))
	st, err := os.Stat(file)
	check(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	stop()
	becomes(t, consul.NoState(p))
	c, _ = start(t, p)
	becomes(t, c.Import(file, "xivo/xivo-auth/"))
	if d := cmp.Diff(want, contents(t, raw(t, n))); d != "" {
		t.Error(d)
	}
}

func TestTheKVSurvivesAResetBitForBit(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) { roundTrip(t, start, awkward) })
}

// Only a Consul that has transactions can have them.
func TestKeysThatNoURLCarriesSurviveTheReset(t *testing.T) { roundTrip(t, start, onlyTxn) }

func TestAnExportIsNeverWrittenOver(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) {
		n := free(t)
		p := layout(t, "xivo", n)
		c, _ := start(t, p)
		file := p.Path(platform.StateDir, "kv.json")
		check(t, c.Export(t.Context(), file)) // the probe was the only key
		same(t, c.Import(file))
		check(t, os.WriteFile(file, []byte("precious"), 0o600))
		if err := c.Export(t.Context(), file); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v", err)
		}
		if data, _ := os.ReadFile(file); string(data) != "precious" {
			t.Errorf("%s", data)
		}
		for _, damaged := range []string{"precious", "{}", `{"format":1}`, `["8", null]`, `{"format":2,"entries":[]}`} {
			check(t, os.WriteFile(file, []byte(damaged), 0o600))
			if _, err := c.Import(file).Diff(t.Context()); err == nil || strings.Contains(err.Error(), "%!") {
				t.Errorf("%s: %v", damaged, err)
			}
		}
	})
}

func TestAKeyThatJSONAltersIsNotExported(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) {
		n := free(t)
		p := layout(t, "xivo", n)
		c, _ := start(t, p)
		if _, err := raw(t, n).KV().Put(&api.KVPair{Key: "xivo/\xff", Value: []byte("x")}, nil); err != nil {
			t.Skip("Consul does not take such a key: ", err)
		}
		file := p.Path(platform.StateDir, "kv.json")
		if err := c.Export(t.Context(), file); err == nil {
			t.Error("exported under another name")
		}
	})
}

func TestAnErrorTellsNoKeyThatIsAToken(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) {
		n := free(t)
		p := layout(t, "xivo", n)
		c, _ := start(t, p)
		file := p.Path(platform.StateDir, "kv.json")
		value := strings.Repeat("A", 800<<10) // base64 of more than Consul takes
		check(t, os.WriteFile(file, []byte(`{"format":1,"entries":[{"key":"xivo/xivo-auth/tokens/live-token","value":"`+value+`","flags":0}]}`), 0o600))
		if err := c.Import(file).Apply(t.Context()); err == nil || strings.Contains(err.Error(), "live-token") {
			t.Errorf("%.300v", err)
		}
	})
}

func TestTheKVIsExportedAtRest(t *testing.T) {
	t.Setenv("PATH", filepath.Dir(binary(t))+":"+os.Getenv("PATH"))
	n := free(t)
	p := layout(t, "xivo", n)
	_, stop := start(t, p)
	fill(t, raw(t, n), awkward)
	file := p.Path(platform.StateDir, "kv.json")
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	if err := consul.ExportAtRest(ctx, p, file); err == nil {
		t.Fatal("exported at rest while Consul runs")
	}
	stop()
	check(t, consul.ExportAtRest(ctx, p, file))
	left, err := os.ReadDir(p.Path(platform.StateDir))
	check(t, err)
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	c, _ := start(t, p)
	same(t, c.Import(file))
}

func TestAWrongTokenDoesNothing(t *testing.T) {
	t.Run("Consul as it is", func(t *testing.T) {
		wrong := wrongTokenDoesNothing(t, start)
		if got, err := wrong.LocalServices(t.Context()); err == nil {
			t.Errorf("services: %v", got)
		}
		if got, err := wrong.WANMembers(t.Context()); err == nil {
			t.Errorf("members: %v", got)
		}
	})
	// The agent of such a Consul asks for no token.
	t.Run("with the habits of 0.5", func(t *testing.T) { wrongTokenDoesNothing(t, startOld) })
}

func wrongTokenDoesNothing(t *testing.T, start starter) *consul.Client {
	n := free(t)
	p := layout(t, "xivo", n)
	start(t, p)
	fill(t, raw(t, n), awkward)
	check(t, consul.TokenFiles(p, "11111111-2222-3333-4444-555555555555").Apply(t.Context()))
	wrong, err := consul.Dial(p)
	check(t, err)
	file := p.Path(platform.StateDir, "kv.json")
	if err := wrong.Export(t.Context(), file); err == nil || strings.Contains(err.Error(), "11111111") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Error("written all the same")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := wrong.WaitLeader(ctx); err == nil || strings.Contains(err.Error(), "11111111") {
		t.Errorf("%v", err)
	}
	return wrong
}

func TestAnotherCertificateIsRefused(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) {
		p := layout(t, "xivo", free(t))
		start(t, p)
		cert, _ := keyPair(t)
		write(t, p, platform.CertificateFile, cert, 0o644)
		c, err := consul.Dial(p)
		check(t, err)
		if _, err := c.LocalServices(t.Context()); err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), token) {
			t.Errorf("%v", err)
		}
	})
}

// A server that takes connections and says nothing must not hold anybody up.
func TestASilentAgentIsAnErrorInTime(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	check(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, c)
		}
	}()
	p := layout(t, "xivo", ports{https: l.Addr().(*net.TCPAddr).Port})
	c, err := consul.Dial(p)
	check(t, err)
	for name, ask := range map[string]func(context.Context) error{
		"WANMembers":    func(ctx context.Context) error { _, err := c.WANMembers(ctx); return err },
		"JoinedWAN":     func(ctx context.Context) error { return c.JoinedWAN([]string{"127.0.0.9"}).Apply(ctx) },
		"LocalServices": func(ctx context.Context) error { _, err := c.LocalServices(ctx); return err },
		"WaitLeader":    c.WaitLeader,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- ask(ctx) }()
			select {
			case err := <-done:
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("still waiting 4.5 s after its deadline")
			}
		})
	}
}

// A cut-off list must not count as one: who is missing in it would be gone.
func TestAnAnswerWithoutAnEndIsAnError(t *testing.T) {
	for name, item := range map[string]string{
		"items":  `{"Name": "x.y", "Addr": "10.0.0.1", "Status": 1, "Key": "k", "Value": "dg==", "ServiceID": "s"}`,
		"blanks": strings.Repeat(" ", 100),
	} {
		t.Run(name, func(t *testing.T) {
			first := item + ","
			if name == "blanks" {
				first = item
			}
			s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "[")
				for text := strings.Repeat(first, 1000); ; {
					if _, err := io.WriteString(w, text); err != nil {
						return
					}
				}
			}))
			p := layout(t, "xivo", ports{https: s.Listener.Addr().(*net.TCPAddr).Port})
			cert, err := tls.LoadX509KeyPair(p.Path(platform.CertificateFile), p.Path(platform.CertificateKey))
			check(t, err)
			s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
			s.StartTLS()
			defer s.Close()
			c, err := consul.Dial(p)
			check(t, err)
			for name, ask := range map[string]func() error{
				"WANMembers":     func() error { _, err := c.WANMembers(t.Context()); return err },
				"OthersServices": func() error { _, err := c.OthersServices(t.Context(), "far", "xivo-ctid"); return err },
			} {
				if err := ask(); !errors.Is(err, limit.ErrTooLong) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// Two nodes: each a datacenter of its own, one token, encrypted gossip. In the end
// one leaves.
func TestTwoNodesAreInOneWAN(t *testing.T) {
	everyAge(t, func(t *testing.T, start starter) {
		ctx := t.Context()
		n := free(t) // the same ports on two addresses, as on two machines
		node := func(name, address string) (*consul.Client, ports) {
			m := n
			own := free(t)
			m.https, m.http = own.https, own.http
			p := layout(t, "xivo", m)
			p.Traits.ConsulPerformance = true
			becomes(t, consul.TokenFiles(p, meshToken))
			becomes(t, consul.ConfigFile(p, consul.Settings{Name: name, Advertise: address, MasterToken: meshToken, GossipKey: gossipKey}))
			c, _ := start(t, p, "-bind", address)
			return c, m
		}
		a, portsOfA := node("xivo-a", "127.0.0.2")
		b, portsOfB := node("xivo-b", "127.0.0.3")

		register(t, portsOfA, meshToken, "xivo-ctid")
		check(t, a.WaitService(ctx, "xivo-ctid", "10.0.0.1"))

		if members, err := b.WANMembers(ctx); err != nil || cmp.Diff(members, []consul.Member{{Name: "xivo-b.xivo-b", Datacenter: "xivo-b", Address: "127.0.0.3", Alive: true}}) != "" {
			t.Errorf("before the join: %+v, %v", members, err)
		}
		if err := b.JoinedWAN([]string{"127.0.0.9"}).Apply(ctx); err == nil || !strings.Contains(err.Error(), "127.0.0.9") || strings.Contains(err.Error(), meshToken) {
			t.Errorf("nobody is there: %v", err)
		}
		// Who is there is joined, whoever is not.
		both := b.JoinedWAN([]string{"127.0.0.9", "127.0.0.2"})
		if err := both.Apply(ctx); err == nil || strings.Contains(err.Error(), "127.0.0.2") {
			t.Errorf("one of two is there: %v", err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			diff, err := both.Diff(ctx)
			if err == nil && slices.Equal(diff, []string{"127.0.0.9: not in Consul's WAN"}) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("joined, B lacks %q, %v", diff, err)
			}
		}
		same(t, b.JoinedWAN([]string{"127.0.0.2"}))

		// The command of 0.5 needs neither address nor token.
		t.Setenv("PATH", filepath.Dir(binary(t))+":"+os.Getenv("PATH"))
		t.Setenv("CONSUL_HTTP_ADDR", fmt.Sprint("127.0.0.1:", portsOfB.http))
		t.Setenv("CONSUL_HTTP_TOKEN", meshToken)
		check(t, b.Leave(ctx))
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			members, err := a.WANMembers(ctx)
			if err == nil && !slices.ContainsFunc(members, func(m consul.Member) bool { return m.Alive && m.Datacenter == "xivo-b" }) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("A does not hear that B left: %+v, %v", members, err)
			}
		}
	})
}

// Three nodes of a WAN in which not everybody understands everybody.
func TestPeersThatDoNotUnderstandEachOtherAreToldWhy(t *testing.T) {
	n := free(t)
	node := func(name, address string, key secret.Secret) *consul.Client {
		m := n
		own := free(t)
		m.https, m.http = own.https, own.http
		p := layout(t, "xivo", m)
		p.Traits.ConsulPerformance = true
		becomes(t, consul.TokenFiles(p, meshToken))
		becomes(t, consul.ConfigFile(p, consul.Settings{Name: name, Advertise: address, MasterToken: meshToken, GossipKey: key}))
		c, _ := start(t, p, "-bind", address)
		return c
	}
	ours := node("xivo-a", "127.0.0.2", gossipKey)
	node("xivo-b", "127.0.0.3", "MTEyMzQ1Njc4OWFiY2RlZg==")
	plain := node("xivo-c", "127.0.0.4", "")

	for _, c := range []struct {
		name    string
		of      *consul.Client
		address string
		told    string
	}{
		{"another secret", ours, "127.0.0.3", "another secret"},
		{"no encryption there", ours, "127.0.0.4", "its gossip is not encrypted"},
		{"no encryption here", plain, "127.0.0.2", "its gossip is encrypted"},
		{"nobody there", ours, "127.0.0.9", "is Consul up there"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.of.JoinedWAN([]string{c.address}).Apply(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.told) || !strings.Contains(err.Error(), c.address) || strings.Contains(err.Error(), "\n") {
				t.Errorf("it is told as: %v", err)
			}
		})
	}
}
