package converge

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/localnet"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestANodeWhoseAddressIsGoneIsTold(t *testing.T) {
	if told := addressMoved("192.0.2.1", true, map[netip.Addr]string{netip.MustParseAddr("192.0.2.1"): "eth0"}); len(told) > 0 {
		t.Errorf("with its address in place: %v", told)
	}
	told := addressMoved("192.0.2.1", false, map[netip.Addr]string{netip.MustParseAddr("192.0.2.7"): "eth0"})
	if len(told) != 1 || !strings.Contains(told[0], "192.0.2.1 is on no interface") {
		t.Errorf("with another one: %v", told)
	}
	told = addressMoved("192.0.2.1", true, nil)
	if len(told) != 1 || !strings.Contains(told[0], "`systemctl restart xivo-overlay-address` gives it back") {
		t.Errorf("in a network of the mesh's own: %v", told)
	}
}

// What goes over a network that strangers may be in is told for as long as it does.
func TestANetworkThatStrangersMayBeInIsTold(t *testing.T) {
	direct := func(dev string, shared bool) cloudinit.Network {
		return cloudinit.Network{Mode: cloudinit.NetworkDirect, Interface: dev, Shared: shared}
	}
	with := map[string]cloudinit.Network{"one that the document says is shared": direct("nosuch0", true)}
	local, err := node.LocalAddresses()
	if err != nil {
		t.Fatal(err)
	}
	for _, dev := range local {
		if yes, err := localnet.DefaultRoute(dev); err != nil {
			t.Fatal(err)
		} else if yes {
			with["one with the default route, whatever the document says"] = direct(dev, false)
		}
	}
	for name, network := range with {
		t.Run(name, func(t *testing.T) {
			told, err := sharedNetwork(network)
			if err != nil || len(told) != 1 || !strings.Contains(told[0], "whoever is in the network of "+network.Interface+" reads the contacts, statuses and passwords") {
				t.Errorf("%q, %v", told, err)
			}
		})
	}
	if told, err := sharedNetwork(direct("nosuch0", false)); err != nil || len(told) > 0 {
		t.Errorf("of one that is not: %q, %v", told, err)
	}
}

func TestNotices(t *testing.T) {
	db := nodetest.Connect(t, server.Postgres(t, schema.SQL("16.03")))
	n := nodetest.Server(t, "16.03", db)
	nodetest.Addressed(t, n, "127.0.0.1/8") // this machine has it
	// No name server answers any more.
	resolver := net.DefaultResolver
	defer func() { net.DefaultResolver = resolver }()
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("silence") }}
	m := &Memory{hosts: map[string][]netip.Addr{"a.invalid": {netip.MustParseAddr("10.0.0.1")}, "c.invalid": {netip.MustParseAddr("10.0.0.3")}}}
	for _, c := range []struct{ name, sql, want string }{
		{"nothing to say", "SELECT 1", ""},
		{"a directory made by hand for a machine that is no peer", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://c.invalid:9486', 'xivo', 'sitec', '')`, ""},
		{"a directory made by hand for a peer, by its name", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://A.invalid:9486', 'xivo', 'named', '')`, "the directory named was made by hand for a.invalid"},
		{"a directory made by hand for a peer", `INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://10.0.0.1:9486', 'xivo', 'sitea', '')`, "the directory sitea was made by hand for 10.0.0.1"},
		{"XiVO holds another machine's address", `INSERT INTO netiface (ifname, address, options) VALUES ('eth0', '192.0.2.7', '')`, "eth0 holds 192.0.2.7"},
		{"context separation is on", `UPDATE ctimain SET context_separation = 1`, "context separation is on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := db.Exec(t.Context(), c.sql); err != nil {
				t.Fatal(err)
			}
			p := databasePass(t, n, m, peer("16.03"))
			if p.View.SettingsErr != nil {
				t.Error(p.View.SettingsErr)
			}
			runs(t, p, "directories")
			got := strings.Join(p.conclude(Status{}, nil).Notices, "\n")
			if !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("notices:\n%s\nwant %q", got, c.want)
			}
			byHand := strings.Contains(got, "made by hand")
			if ours := nodetest.Ask[int](t, db, "SELECT count(*) FROM directories WHERE name LIKE 'xivomesh%'"); byHand && ours > 0 || !byHand && ours != 1 {
				t.Errorf("%d sources of ours for the peer", ours)
			}
			// Its steps end at the first that cannot be read; what it tells does not.
			if _, planned, _ := Plan(t.Context(), n, m); fmt.Sprint(planned) != fmt.Sprint(p.conclude(Status{}, nil).Notices) {
				t.Errorf("plan tells %q, and the status something else", planned)
			}
		})
	}
}
