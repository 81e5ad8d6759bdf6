package become_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/become"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const token = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"

// consulOf gives a server a real Consul, which start starts and stop stops.
func consulOf(t *testing.T, n *node.Node) (start func() (kv *api.KV, stop func())) {
	t.Helper()
	binary := os.Getenv("XIVO_CONSUL")
	if binary == "" {
		t.Skip("needs Consul: `make test` sets XIVO_CONSUL")
	}
	t.Setenv("PATH", filepath.Dir(binary)+":"+os.Getenv("PATH"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Put(t, n, platform.CertificateFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	nodetest.Put(t, n, platform.CertificateKey, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
	http := server.FreePort(t)
	config, err := json.Marshal(map[string]any{
		"acl_datacenter": "xivo", "acl_default_policy": "deny", "acl_master_token": token, "datacenter": "xivo",
		"advertise_addr": "127.0.0.1", "bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "bootstrap_expect": 1, "server": true,
		"cert_file": n.Platform.Path(platform.CertificateFile), "key_file": n.Platform.Path(platform.CertificateKey),
		"data_dir": n.Platform.Path(platform.ConsulDataDir), "disable_update_check": true, "performance": map[string]int{"raft_multiplier": 1},
		"ports": map[string]int{"dns": -1, "http": http, "https": server.FreePort(t), "server": server.FreePort(t), "serf_lan": server.FreePort(t), "serf_wan": server.FreePort(t)},
	})
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Put(t, n, platform.ConsulConfigDir+"/config.json", string(config))
	return func() (*api.KV, func()) {
		cmd := exec.Command(binary, "agent", "-config-dir", n.Platform.Path(platform.ConsulConfigDir))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stop := func() { cmd.Process.Kill(); cmd.Wait() }
		t.Cleanup(stop)
		n.Servers.Redial()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		if _, err := n.Servers.Consul(ctx); err != nil {
			t.Fatal(err)
		}
		raw, err := api.NewClient(&api.Config{Address: fmt.Sprint("127.0.0.1:", http), Token: token})
		if err != nil {
			t.Fatal(err)
		}
		return raw.KV(), stop
	}
}

// The KV goes through become and settle: exported, whether Consul runs or not, out
// of Consul, and back, but for what only the original may have.
func TestTheKVOfACopyAndOfAnAdoptedServer(t *testing.T) {
	const contact, live, other = "xivo/private/contacts/1", "xivo/xivo-auth/tokens/1", "site/setting"
	for name, c := range map[string]struct {
		adopted bool
		running bool // exported while Consul runs, as `run` does
		want    map[string]string
	}{
		"a copy, at boot":             {false, false, map[string]string{contact: "Zoé", other: "a setting"}},
		"an adopted server, in a run": {true, true, map[string]string{contact: "Zoé", live: "a token", other: "a setting"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodetest.Server(t, "16.03", nil)
			n.Journal.Identity.Adopted = c.adopted
			n.Servers.OpenConsul = node.NewServers(n.Platform).OpenConsul
			services := &nodetest.Manager{Down: map[string]bool{}}
			n.Platform.Init = services
			start := consulOf(t, n)
			kv, stop := start()
			for key, value := range map[string]string{contact: "Zoé", live: "a token", other: "a setting"} {
				if _, err := kv.Put(&api.KVPair{Key: key, Value: []byte(value)}, nil); err != nil {
					t.Fatal(err)
				}
			}
			at := func(want kvexport.State) {
				t.Helper()
				if s, err := n.KV.State(); s != want || err != nil {
					t.Fatalf("the KV is %s, %v; want %s", s, err, want)
				}
			}
			at(kvexport.None)
			if c.running {
				if err := n.KV.FromConsul(t.Context()); err != nil {
					t.Fatal(err)
				}
				at(kvexport.Exported)
			}
			stop()
			services.Down["consul"] = true

			p := nodetest.Only(t, become.Phase, kvexport.ExportStep, kvexport.EmptyStep)
			if _, err := n.Runner().Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			at(kvexport.Emptied)
			kv, _ = start()
			if pairs, _, err := kv.List("", nil); err != nil || len(pairs) > 0 {
				t.Fatalf("Consul still has %v, %v", pairs, err)
			}
			p = nodetest.Only(t, become.SettlePhase, kvexport.ImportStep)
			if _, err := n.Runner().Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			delete(n.Journal.Steps, node.Settle)
			at(kvexport.Restored)
			p = nodetest.Only(t, become.SettlePhase, kvexport.ImportStep, kvexport.RetireStep)
			if _, err := n.Runner().Run(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			at(kvexport.Retired)
			pairs, _, err := kv.List("", nil)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, pair := range pairs {
				got[pair.Key] = string(pair.Value)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("the KV (-want +got):\n%s", diff)
			}
			if _, err := os.Stat(n.Platform.Path(consul.AtRestDir)); err == nil {
				t.Error("a copy of the KV is left")
			}
		})
	}
}
