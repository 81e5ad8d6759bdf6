package firewall_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
)

// Ports of docs/xivo/host.md, Ports, that people, phones and XiVO's other servers use,
// and ssh.
var neverOurs = []int{
	22, 53, 67, 69, 80, 123, 443, 2812, 5003, 5060, 5061, 5432, 8500, 8666, 8667, 8668, 8669,
	9484, 9489, 9491, 9493, 9498, 9499, 9502,
}

func TestWhatXiVOServesIsInNoRule(t *testing.T) {
	port := regexp.MustCompile(`--[ds]ports? (\S+)`)
	wide := regexp.MustCompile(`-j (DROP|REJECT)`)
	for what, n := range map[string]firewall.Network{"overlay": overlay.Network, "direct": direct.Network, "shared": {Interface: "eth0"}} {
		for _, open := range []bool{false, true} {
			for _, allow := range [][]string{nil, {"10.0.0.0/8"}, {"0.0.0.0/0"}} {
				for _, ipv6 := range []bool{false, true} {
					name := fmt.Sprintf("%s, metadata open %v, allow %s, IPv6 %v", what, open, allow, ipv6)
					lines, err := firewall.Lines(n, firewall.Doors{MetadataOpen: open, Allow: allow, ConsulUser: "4712"}, ipv6)
					check(t, err)
					if len(lines) < 10 {
						t.Errorf("%s: only %q", name, lines)
					}
					for _, line := range lines {
						// Asking the cloud for its metadata is not serving the web.
						asks := strings.HasPrefix(line, "-A "+firewall.Out+" -d 169.254.169.254/32 ") || strings.HasPrefix(line, "-A "+firewall.Out+" -d fd00:ec2::254/128 ")
						m := port.FindStringSubmatch(line)
						if m == nil {
							// Without a port, only what is the mesh's own is refused.
							if wide.MatchString(line) && !strings.Contains(line, "xivo-mesh") {
								t.Errorf("%s: %s", name, line)
							}
							continue
						}
						number, err := strconv.Atoi(m[1])
						if err != nil || number >= 10000 && number <= 15671 || slices.Contains(neverOurs, number) && !asks {
							t.Errorf("%s: %s", name, line)
						}
						if strings.Contains(line, "-j ACCEPT") {
							t.Errorf("%s: widens what others forbid: %s", name, line)
						}
					}
				}
			}
		}
	}
}

func TestWhatIsNotAnAddressOrAnInterfaceIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		network firewall.Network
		allow   string
		want    string
	}{
		"a name":                  {overlay.Network, "xivo-a", `firewall: "xivo-a" is not an IPv4 address or network`},
		"IPv6":                    {overlay.Network, "fe80::1", `firewall: "fe80::1" is not an IPv4 address or network`},
		"no interface":            {firewall.Network{}, "10.0.0.1", `firewall: "" is not the name of a network interface that the mesh could use`},
		"all interfaces":          {firewall.Network{Interface: "eth+"}, "10.0.0.1", `"eth+" is not`},
		"an interface and a line": {firewall.Network{Interface: "eth0\n-F"}, "10.0.0.1", `is not the name`},
		"loopback":                {firewall.Network{Interface: "lo"}, "10.0.0.1", `"lo" is not`},
		"a range of IPv6":         {firewall.Network{Interface: "xivo-mesh", Range: netip.MustParsePrefix("fd00::/64")}, "10.0.0.1", `the range fd00::/64 is not IPv4`},
	} {
		if _, err := firewall.Lines(tt.network, firewall.Doors{Allow: []string{tt.allow}}, false); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}
