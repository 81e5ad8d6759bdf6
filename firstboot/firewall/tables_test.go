package firewall

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// As the source of iptables about 1.4.10 prints it: users by name, a space after each
// word.
func TestRulesThatAnOldIptablesPrints(t *testing.T) {
	got := printed("-P INPUT ACCEPT\n-N XIVO-MESH-OUT\n-A OUTPUT -j XIVO-MESH-OUT \n" +
		"-A XIVO-MESH-OUT -o lo -p tcp -m tcp --dport 8400 --tcp-flags SYN,ACK SYN  -m owner --uid-owner root -j RETURN \n" +
		"-A XIVO-MESH-OUT -o lo -p tcp -m tcp --dport 8400 --tcp-flags SYN,ACK SYN  -m owner --uid-owner nobody-has-this-name -j RETURN \n")
	want := state{
		chains: map[string][]string{Out: {
			"-o lo -p tcp -m tcp --dport 8400 --tcp-flags SYN,ACK SYN -m owner --uid-owner 0 -j RETURN",
			"-o lo -p tcp -m tcp --dport 8400 --tcp-flags SYN,ACK SYN -m owner --uid-owner nobody-has-this-name -j RETURN",
		}},
		jumps: map[string]int{Out: 1},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(state{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
