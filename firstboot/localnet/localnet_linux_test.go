package localnet_test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/localnet"
)

// onMachine runs f on a thread with a network and mounts of its own: a link, uplink
// to lan, with 192.0.2.1/24 and a default gateway, and no name server. They end with f.
func onMachine(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread is of no other use
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
			done <- err
			return
		}
		must(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		must(t, unix.Mount("none", "/run", "tmpfs", 0, ""))
		write(t, "/run/resolv.conf", "")
		must(t, unix.Mount("/run/resolv.conf", "/etc/resolv.conf", "", unix.MS_BIND, ""))
		for _, line := range []string{
			"link set lo up",
			"link add uplink type veth peer name lan",
			"link set uplink up",
			"link set lan up",
			"addr add 192.0.2.1/24 dev uplink",
			"route add default via 192.0.2.254",
		} {
			ip(t, line)
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Skipf("no namespaces here: %v", err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func ip(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		t.Errorf("ip %s: %v: %s", line, err, out)
	}
}

func write(t *testing.T, name, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(name), 0o755))
	must(t, os.WriteFile(name, []byte(content), 0o644))
}

func TestARangeIsFreeUntilTheMachineUsesIt(t *testing.T) {
	const own = "xivo-mesh"
	for name, c := range map[string]struct {
		in      string   // "": 100.88.0.0/16
		ip      []string // done before
		resolv  string
		behind  string // name servers behind systemd's resolver
		outside []localnet.Outside
		uses    string // what is said to be there; "": free
	}{
		"a machine with a default route":               {},
		"an address elsewhere":                         {ip: []string{"addr add 100.89.0.1/16 dev uplink"}},
		"the mesh's own, as the overlay sets it":       {ip: []string{"addr add 100.88.3.4/32 dev lo", "route add unreachable 100.88.0.0/16 metric 2147483647", "link add xivo-mesh type veth peer name other", "link set xivo-mesh up", "route add 100.88.0.0/16 dev xivo-mesh src 100.88.3.4"}},
		"an address and a gateway of the mesh's own":   {ip: []string{"link add xivo-mesh type veth peer name other", "link set xivo-mesh up", "addr add 100.88.3.4/16 dev xivo-mesh", "route add 203.0.113.0/24 via 100.88.0.9"}},
		"a default route without a gateway":            {ip: []string{"route add default dev uplink metric 7"}},
		"halves of the default route, of a VPN":        {ip: []string{"route add 0.0.0.0/1 dev lan", "route add 128.0.0.0/1 dev lan"}},
		"a route to more, by a gateway":                {ip: []string{"route add 100.64.0.0/10 via 192.0.2.7"}},
		"a route to more, by several gateways":         {ip: []string{"route add 100.64.0.0/10 nexthop via 192.0.2.7 nexthop via 192.0.2.8"}},
		"a route to more, by a gateway of IPv6":        {ip: []string{"route add 100.64.0.0/10 via inet6 fe80::1 dev uplink"}},
		"a route by which more is unreachable":         {ip: []string{"route add unreachable 100.64.0.0/10"}},
		"a name server elsewhere":                      {resolv: "nameserver 192.0.2.7\n"},
		"a name server of IPv6, and what is no server": {resolv: "# nameserver 100.88.0.7\nsearch 100.88.0.7\nnameserver fe80::1%uplink\nnameserver\n"},
		"a peer elsewhere":                             {outside: []localnet.Outside{{netip.MustParseAddr("192.0.2.9"), "the peer xivo1"}}},
		"a larger range than default, used by nobody":  {in: "10.0.0.0/8"},
		"an address":                                   {ip: []string{"addr add 100.88.3.4/32 dev uplink"}, uses: "uplink has the address 100.88.3.4/32"},
		"an address of a link that is down":            {ip: []string{"link set lan down", "addr add 100.88.3.4/24 dev lan"}, uses: "lan has the address 100.88.3.4/24"},
		"an address with a network, told once":         {ip: []string{"addr add 100.88.3.4/24 dev uplink"}, uses: "uplink has the address 100.88.3.4/24"},
		"a network on loopback":                        {ip: []string{"addr add 100.88.3.4/24 dev lo"}, uses: "lo has the address 100.88.3.4/24"},
		"a network around it, as of a carrier":         {ip: []string{"addr add 100.64.0.9/10 dev uplink"}, uses: "uplink is in the network 100.64.0.0/10"},
		"the other end of a line":                      {ip: []string{"addr add 10.0.0.1 peer 100.88.0.2 dev lan"}, uses: "a route leads to 100.88.0.2/32 through lan"},
		"a route to a part":                            {ip: []string{"route add 100.88.7.0/24 via 192.0.2.7"}, uses: "a route leads to 100.88.7.0/24 through uplink by 192.0.2.7"},
		"a route to all of it":                         {ip: []string{"route add 100.88.0.0/16 dev lan"}, uses: "a route leads to 100.88.0.0/16 through lan"},
		"a route to all of it, of ours, and another's": {ip: []string{"link add xivo-mesh type veth peer name other", "link set xivo-mesh up", "route add 100.88.0.0/16 dev xivo-mesh", "route add 100.88.0.0/16 dev lan metric 9"}, uses: "a route leads to 100.88.0.0/16 through lan"},
		"a route in a table of its own":                {ip: []string{"route add 100.88.7.7/32 dev lan table 52"}, uses: "a route leads to 100.88.7.7/32 through lan (table 52)"},
		"a table with a large number":                  {ip: []string{"route add 100.88.7.7/32 dev lan table 5200"}, uses: "a route leads to 100.88.7.7/32 through lan (table 5200)"},
		"a route to more, on the link":                 {ip: []string{"route add 100.64.0.0/10 dev lan"}, uses: "a route leads to 100.64.0.0/10 through lan"},
		"a route to more, one way on the link":         {ip: []string{"route add 100.64.0.0/10 nexthop via 192.0.2.7 nexthop dev lan"}, uses: "a route leads to 100.64.0.0/10 through uplink by 192.0.2.7 through lan"},
		"a route to a part, by two gateways":           {ip: []string{"route add 100.88.7.0/24 nexthop via 192.0.2.7 nexthop via 192.0.2.8"}, uses: "a route leads to 100.88.7.0/24 through uplink by 192.0.2.7 through uplink by 192.0.2.8"},
		"a part that somebody made unreachable":        {ip: []string{"route add unreachable 100.88.9.0/24"}, uses: "a route makes 100.88.9.0/24 unreachable"},
		"all of it, made a black hole":                 {ip: []string{"route add blackhole 100.88.0.0/16"}, uses: "a route makes 100.88.0.0/16 unreachable"},
		"all addresses of more are this machine's":     {ip: []string{"route add local 100.64.0.0/10 dev lo"}, uses: "a route makes 100.64.0.0/10 this machine's own through lo"},
		"a gateway that no network of ours has":        {ip: []string{"route add 203.0.113.0/24 via 100.88.0.1 dev lan onlink"}, uses: "a gateway of lan has the address 100.88.0.1"},
		"the default gateway":                          {ip: []string{"route add default via 100.88.0.1 dev lan onlink metric 5"}, uses: "a gateway of lan has the address 100.88.0.1"},
		"one of two gateways":                          {ip: []string{"route add 203.0.113.0/24 nexthop via 192.0.2.7 nexthop via 100.88.0.1 dev lan onlink"}, uses: "a gateway of lan has the address 100.88.0.1"},
		"a name server":                                {resolv: "search x\nnameserver 192.0.2.7\n nameserver\t100.88.0.53 # ours\n", uses: "a name server has the address 100.88.0.53"},
		"a name server that two files have":            {resolv: "nameserver 100.88.0.53\n", behind: "nameserver 100.88.0.53\n", uses: "a name server has the address 100.88.0.53"},
		"a network on two links":                       {ip: []string{"addr add 100.88.3.4/24 dev uplink", "route add 100.88.3.0/24 dev lan metric 9"}, uses: "a route leads to 100.88.3.0/24 through lan; uplink has the address 100.88.3.4/24"},
		"a name server behind systemd's resolver":      {resolv: "nameserver 127.0.0.53\n", behind: "nameserver 100.88.0.53\n", uses: "a name server has the address 100.88.0.53"},
		"a peer":                 {outside: []localnet.Outside{{netip.MustParseAddr("100.88.0.9"), "the peer xivo1"}}, uses: "the peer xivo1 has the address 100.88.0.9"},
		"a range within the LAN": {in: "192.0.2.128/25", uses: "a gateway of uplink has the address 192.0.2.254; uplink is in the network 192.0.2.0/24"},
		"all that there is, at once and each in its turn": {ip: []string{"addr add 100.88.3.4/24 dev uplink", "route add 100.88.7.0/24 dev lan"}, resolv: "nameserver 100.88.3.5\n", uses: "a name server has the address 100.88.3.5; a route leads to 100.88.7.0/24 through lan; uplink has the address 100.88.3.4/24"},
	} {
		t.Run(name, func(t *testing.T) {
			onMachine(t, func() {
				for _, line := range c.ip {
					ip(t, line)
				}
				write(t, "/etc/resolv.conf", c.resolv)
				if c.behind != "" {
					write(t, "/run/systemd/resolve/resolv.conf", c.behind)
				}
				in := netip.MustParsePrefix("100.88.0.0/16")
				if c.in != "" {
					in = netip.MustParsePrefix(c.in)
				}
				err := localnet.RangeFree(in, own, c.outside...)
				switch want := "network.range " + in.String() + " is in use here: " + c.uses + "; set `network.range` to a network that no node uses, the same on all nodes"; {
				case c.uses == "" && err != nil:
					t.Errorf("refused: %v", err)
				case c.uses != "" && err == nil:
					t.Errorf("free, want: %s", want)
				case c.uses != "" && err.Error() != want:
					t.Errorf("%v\nwant: %s", err, want)
				}
			})
		})
	}
}

func TestARangeMustBeOfIPv4(t *testing.T) {
	for _, in := range []netip.Prefix{{}, netip.MustParsePrefix("fd00::/64")} {
		if err := localnet.RangeFree(in, "xivo-mesh"); err == nil {
			t.Errorf("%v is free", in)
		}
	}
}
