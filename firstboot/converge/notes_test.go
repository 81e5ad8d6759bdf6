package converge

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// answeringConsul lets the node's Consul be one that answers like that.
func answeringConsul(t *testing.T, n *node.Node, answer http.HandlerFunc) {
	t.Helper()
	s := httptest.NewTLSServer(answer)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"acl_master_token": "x", "ports": map[string]any{"https": json.Number(u.Port())}})
	if err != nil {
		t.Fatal(err)
	}
	nodetest.Put(t, n, platform.CertificateFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})))
	nodetest.Put(t, n, platform.ConsulConfigDir+"/config.json", string(config))
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return consul.Dial(n.Platform) }
}

// What the notes said last counts as long as they cannot be read, whether Consul is
// down or answers with an error: a node that left is not to open its ports again.
func TestANodeThatLeftRemembersItWhenTheNotesCannotBeRead(t *testing.T) {
	n := nodetest.Server(t, "16.03", nil)
	nodetest.Done(t, n, node.Become, node.Settle)
	withoutConsulAndBroker(n)
	n.Document.Config.Peers = []string{"192.0.2.10"}
	for name, prepare := range map[string]func(){
		"Consul is down": func() {},
		"Consul answers with an error": func() {
			answeringConsul(t, n, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no leader", 500) })
		},
		"Consul answers with an empty KV": func() { answeringConsul(t, n, func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("[]")) }) },
	} {
		t.Run(name, func(t *testing.T) {
			prepare()
			m := Memory{askedAgain: true, notes: Notes{Departed: mesh.Departures{n.Identity().UUID: time.Now().Add(time.Hour)}}}
			p, err := newPass(t.Context(), n, &m, stepTime)
			if err != nil {
				t.Fatal(err)
			}
			if p.View.WAN.Err == nil {
				t.Error("it is not told that the notes cannot be read")
			}
			if p.Decision.LeftAt.IsZero() || len(p.Decision.LetIn) > 0 {
				t.Errorf("it forgot that it left, and lets in %v", p.Decision.LetIn)
			}
		})
	}
}

// Whoever wrote it must not stop this node.
func TestADamagedNoteHidesNoOther(t *testing.T) {
	id := nodetest.PeerUUID
	notes, damaged := parseNotes(map[string]string{
		"refused/a": "{", "refused/b": `{"reason": "is a copy", "version": "16.03"}`,
		"gone/" + id: time.Now().Format(time.RFC3339Nano),
	})
	if damaged == nil {
		t.Error("it is not told")
	}
	if len(notes.Refusals) != 1 || notes.Refusals["b"].Reason != "is a copy" || len(notes.Departed) != 1 {
		t.Errorf("got %+v", notes)
	}
}
