// Package firewall says who may reach the ports that the mesh opens. The rules
// are in a chain of its own; nobody else's rule is touched.
package firewall

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Chain is the chain that INPUT jumps to.
const Chain = "XIVO-MESH"

const jump = "-A INPUT -j " + Chain

// Policy says which ports are guarded and who may reach them. Loopback always
// may.
type Policy struct {
	Allowed []string // IPv4 addresses and prefixes
	Ports   []int    // TCP
	UDP     []int
}

// MeshPolicy guards what joining a mesh opens on a XiVO: Consul's server RPC and
// its gossip on the LAN, which no peer needs but which binds with the WAN's,
// xivo-ctid's HTTP interface, which asks for no password, and the broker's
// management, should it ever listen beyond loopback.
func MeshPolicy(allowed []string) Policy {
	return Policy{
		Allowed: allowed,
		Ports:   []int{8300, 8301, 9495, 15672},
		UDP:     []int{8301},
	}
}

// WithGossip guards the gossip on the WAN as well. It is for a gossip that is
// not encrypted: one that is lets in only who has the key, and has to be open
// to newcomers, whose addresses nobody knows yet.
func (p Policy) WithGossip() Policy {
	p.Ports = append(slices.Clone(p.Ports), 8302)
	p.UDP = append(slices.Clone(p.UDP), 8302)
	return p
}

// Strict guards what a XiVO has open anyway and the mesh uses: RabbitMQ,
// xivo-confd, and where peers ask for statuses there, xivo-auth and
// xivo-ctid-ng. Phones and clients that use them need to be allowed then.
func (p Policy) Strict(t platform.Traits) Policy {
	p.Ports = append(slices.Clone(p.Ports), 5672, 9486)
	if t.PresenceCredentials {
		p.Ports = append(p.Ports, 9497, 9500)
	}
	return p
}

// command runs a program with an input and returns its output.
type command func(ctx context.Context, stdin, name string, args ...string) (string, error)

// Rules is the policy in the kernel: the chain with exactly our rules, and one
// jump to it from INPUT. The chain only drops; what it lets pass is still
// subject to the rules that others made. It lasts until the next boot.
func Rules(policy Policy) engine.Resource { return chain{policy, run} }

// chain is a policy in the kernel that run reaches.
type chain struct {
	policy Policy
	run    command
}

// Diff compares the chain with the policy.
func (c chain) Diff(ctx context.Context) ([]string, error) {
	want, err := c.policy.rules()
	if err != nil {
		return nil, err
	}
	have, jumps, err := c.read(ctx)
	if err != nil {
		return nil, err
	}
	var diff []string
	for _, r := range want {
		if !slices.Contains(have, r) {
			diff = append(diff, "the rule is missing: "+r)
		}
	}
	// Not told: somebody else wrote them.
	if n := len(slices.DeleteFunc(slices.Clone(have), func(r string) bool { return slices.Contains(want, r) })); n > 0 {
		diff = append(diff, fmt.Sprintf("rules that are not wanted: %d", n))
	}
	if diff == nil && !slices.Equal(have, want) {
		diff = append(diff, "the rules of "+Chain+" are in another order")
	}
	if jumps != 1 {
		diff = append(diff, fmt.Sprintf("INPUT jumps to %s %d times, should once", Chain, jumps))
	}
	return diff, nil
}

// Apply replaces the chain's rules and sets the jump, all at once or not at all.
func (c chain) Apply(ctx context.Context) error {
	want, err := c.policy.rules()
	if err != nil {
		return err
	}
	_, jumps, err := c.read(ctx)
	if err != nil {
		return err
	}

	var in strings.Builder
	// With --noflush, naming a chain of one's own empties that chain only.
	fmt.Fprintf(&in, "*filter\n:%s - [0:0]\n%s\n", Chain, strings.Join(want, "\n"))
	for ; jumps > 1; jumps-- {
		fmt.Fprintf(&in, "-D INPUT -j %s\n", Chain)
	}
	if jumps == 0 {
		// First, so that no rule that accepts comes before it.
		fmt.Fprintf(&in, "-I INPUT 1 -j %s\n", Chain)
	}
	in.WriteString("COMMIT\n")
	if _, err := c.run(ctx, in.String(), "iptables-restore", "--noflush"); err != nil {
		return fmt.Errorf("firewall: set the chain %s: %w", Chain, err)
	}
	return nil
}

// rules returns the chain's rules as `iptables -S` prints them.
func (p Policy) rules() ([]string, error) {
	allowed := make([]netip.Prefix, 0, len(p.Allowed))
	for _, text := range p.Allowed {
		prefix, err := parse(text)
		if err != nil {
			return nil, fmt.Errorf("firewall: %q is not an IPv4 address or prefix", text)
		}
		allowed = append(allowed, prefix)
	}
	slices.SortFunc(allowed, netip.Prefix.Compare)

	rule := "-A " + Chain + " "
	rules := []string{rule + "-i lo -j RETURN"}
	for _, prefix := range slices.Compact(allowed) {
		if prefix.Bits() == 0 {
			// iptables prints no source for everybody.
			rules = append(rules, rule+"-j RETURN")
			continue
		}
		rules = append(rules, rule+"-s "+prefix.String()+" -j RETURN")
	}
	for _, port := range p.Ports {
		rules = append(rules, fmt.Sprintf("%s-p tcp -m tcp --dport %d -j DROP", rule, port))
	}
	for _, port := range p.UDP {
		rules = append(rules, fmt.Sprintf("%s-p udp -m udp --dport %d -j DROP", rule, port))
	}
	return rules, nil
}

func parse(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Is4() {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	if err == nil && !prefix.Addr().Is4() {
		err = errors.New("not IPv4")
	}
	return prefix.Masked(), err
}

// read returns the chain's rules and how often INPUT jumps to it. A chain that
// is not there has no rules.
func (c chain) read(ctx context.Context) (rules []string, jumps int, err error) {
	out, err := c.run(ctx, "", "iptables", "-S")
	if err != nil {
		return nil, 0, fmt.Errorf("firewall: read the rules: %w", err)
	}
	// Every table has its built-in chains: no line is no answer.
	if !strings.Contains(out, "-P INPUT ") {
		return nil, 0, fmt.Errorf("firewall: read the rules: iptables -S told nothing of the chain INPUT")
	}
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch {
		case line == jump:
			jumps++
		case strings.HasPrefix(line, "-A "+Chain+" "):
			rules = append(rules, line)
		}
	}
	return rules, jumps, nil
}

// run looks commands up where iptables is, also with a PATH of a user.
func run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err != nil {
			path, err = exec.LookPath(dir + name)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s is not installed: run `apt-get install iptables`, or set firewall.enabled to false: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, said strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}
