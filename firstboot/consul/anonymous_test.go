package consul_test

import (
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// Two nodes whose Consuls have a token each, that the other does not know.
func TestNodesWithTokensOfTheirOwnFindEachOthersServices(t *testing.T) {
	ctx := t.Context()
	n := free(t)
	node := func(name, address, token string) (*consul.Client, ports) {
		m, own := n, free(t)
		m.https, m.http = own.https, own.http
		p := layout(t, "xivo", m)
		p.Traits.ConsulPerformance = true
		becomes(t, consul.TokenFiles(p, secret.Secret(token)))
		becomes(t, consul.ConfigFile(p, consul.Settings{Name: name, Advertise: address, Bind: true, MasterToken: secret.Secret(token), GossipKey: gossipKey}))
		if kept, err := consul.MasterToken(p); err != nil || kept != secret.Secret(token) {
			t.Errorf("the master token is read as another one: %v", err)
		}
		c, _ := start(t, p)
		return c, m
	}
	const ofA = "5a1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3c"
	a, portsOfA := node("xivo-a", "127.0.0.2", ofA)
	b, _ := node("xivo-b", "127.0.0.3", meshToken)
	register(t, portsOfA, ofA, "xivo-ctid")
	register(t, portsOfA, ofA, "something")
	becomes(t, b.JoinedWAN([]string{"127.0.0.2"}))

	if found, err := b.OthersServices(ctx, "xivo-a", "xivo-ctid"); err == nil && len(found) > 0 {
		t.Errorf("before A lets anybody: %+v", found)
	}
	becomes(t, a.AnonymousServices())
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		found, err := b.OthersServices(ctx, "xivo-a", "xivo-ctid")
		if err == nil && len(found) == 1 && found[0].Address == "10.0.0.1" && found[0].ID == "xivo-ctid" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("B does not see A's xivo-ctid: %+v, %v", found, err)
		}
	}
	if found, err := b.OthersServices(ctx, "xivo-a", "something"); err != nil || len(found) > 0 {
		t.Errorf("a service that is not XiVO's is shown to everybody: %+v, %v", found, err)
	}
}
