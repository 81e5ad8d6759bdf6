package firewall

import "fmt"

// Lines are the rules of a family, without and with the local doors, as `iptables -S`
// prints them.
func Lines(n Network, d Doors, ipv6 bool) ([]string, error) {
	var lines []string
	for _, doors := range []bool{false, true} {
		chains, err := static{n, d}.rules(ipv6, doors)
		if err != nil {
			return nil, err
		}
		for _, c := range chains {
			for _, r := range c.rules {
				lines = append(lines, fmt.Sprintf("-A %s %s", c.name, r))
			}
		}
	}
	return lines, nil
}
