package cloudinit

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

var (
	hostName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	// Resolvers read a name whose last label is a number as an address.
	numeric = regexp.MustCompile(`(^|\.)(0x[0-9a-f]*|[0-9]+)$`)

	interfaceName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
	// XiVO's column context.name holds 39 characters.
	contextPattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,39}$`)

	// YAML 1.1, which cloud-init reads, has numbers like 190:20:30.
	sexagesimal = regexp.MustCompile(`^[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?$`)
)

// host accepts a host name or an IPv4 address that other machines can reach.
func host(s string) (string, *fault) {
	const write = "write a host name or an IPv4 address"
	name := strings.TrimSuffix(strings.ToLower(s), ".")
	bare := strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")

	switch {
	case s == "":
		return "", &fault{"is empty", write}
	case strings.Contains(s, "://"):
		// Not shown: it may carry a password.
		if u, err := url.Parse(s); err == nil {
			if only, bad := host(u.Hostname()); bad == nil {
				return "", &fault{"is a URL", "write the host only: " + only}
			}
		}
		return "", &fault{"is a URL", write}
	case strings.Contains(s, "@"):
		return "", &fault{"carries a user name", "write the host only"}
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		if a.Is6() {
			return "", &fault{quote(s) + " is an IPv6 address, which xivo-dird cannot parse", write}
		}
		return address(s)
	}
	if _, err := netip.ParsePrefix(s); err == nil {
		return "", &fault{quote(s) + " is a network", "list its nodes one by one"}
	}
	if only, _, err := net.SplitHostPort(s); err == nil {
		if _, bad := host(only); bad == nil {
			return "", &fault{quote(s) + " has a port", "write the host only: " + only}
		}
	}
	switch {
	case len(name) > 253 || !hostName.MatchString(name):
		return "", &fault{quote(s) + " is not a host name", write}
	case numeric.MatchString(name):
		return "", &fault{quote(s) + " is neither an IPv4 address nor a host name", "write four numbers from 0 to 255, without leading zeros"}
	case name == "localhost" || strings.HasPrefix(name, "localhost.") || strings.HasSuffix(name, ".localhost"):
		return "", &fault{quote(s) + " is another machine on every node", "write a name that means the same everywhere"}
	}
	return name, nil
}

// address accepts an IPv4 address that other machines can reach.
func address(s string) (string, *fault) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || !a.Is4():
		return "", &fault{quote(s) + " is not an IPv4 address", "write one, for example 192.168.1.124"}
	case !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast(), a.As4()[0] == 0, a.As4()[0] >= 224:
		return "", &fault{quote(s) + " cannot be reached from another machine", "write an address of the network that the nodes share"}
	}
	return a.String(), nil
}

// network accepts an IPv4 address or network.
func network(s string) (string, *fault) {
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
		if p != p.Masked() {
			return "", &fault{quote(s) + " has host bits set", "write " + p.Masked().String() + ", or the address alone"}
		}
		return s, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is4() {
		return s, nil
	}
	return "", &fault{quote(s) + " is neither an IPv4 address nor a network", "write for example 192.168.1.7 or 192.168.1.0/24"}
}

func networkInterface(s string) (string, *fault) {
	if !interfaceName.MatchString(s) || s == "." || s == ".." {
		return "", &fault{quote(s) + " is not the name of a network interface", "take one that `ip link` shows"}
	}
	if s == "lo" {
		return "", &fault{`"lo" cannot be reached from another machine`, "take the interface of the network that the nodes share"}
	}
	return s, nil
}

func contextName(s string) (string, *fault) {
	if !contextPattern.MatchString(s) {
		return "", &fault{quote(s) + " is not the name of a context", "take one that XiVO's web interface shows"}
	}
	return s, nil
}

func absolute(s string) (string, *fault) {
	if !path.IsAbs(s) || strings.ContainsFunc(s, unicode.IsControl) {
		// Not shown: in secret_file it may be the secret itself.
		return "", &fault{"is not an absolute path", "start it with /"}
	}
	return path.Clean(s), nil
}

func absoluteOrNone(s string) (string, *fault) {
	if s == "" {
		return "", nil
	}
	return absolute(s)
}

// checkSecret accepts what reads the same from a document and from a file.
func checkSecret(s string) *fault {
	switch n := utf8.RuneCountInString(s); {
	case strings.ContainsFunc(s, unicode.IsControl):
		return &fault{"holds a line break or another control character", "write it on one line"}
	case s != strings.TrimSpace(s):
		return &fault{"starts or ends with space", "remove that"}
	case n < MinSecret:
		return &fault{fmt.Sprintf("has %d characters, fewer than %d", n, MinSecret), strong}
	}
	return nil
}
