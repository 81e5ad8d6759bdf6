// Package identity makes a server one of its own: its XiVO UUID in every place
// that holds one, its host name, the names that follow from both, the keys of
// its services and its certificate.
package identity

import (
	"strings"

	"github.com/google/uuid"
)

// maxSlug keeps "<slug>-<8 hex>" within the 63 characters of a DNS label.
const maxSlug = 54

// Slug reduces a host name to [a-z0-9-], without the domain: what is accepted
// as a Consul datacenter and node name. It neither begins nor ends with a dash
// and is never empty.
func Slug(host string) string {
	host, _, _ = strings.Cut(host, ".")
	var b strings.Builder
	for _, r := range strings.ToLower(host) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
	}
	s := b.String()
	s = strings.Trim(s[:min(len(s), maxSlug)], "-")
	if s == "" {
		return "xivo"
	}
	return s
}

// NodeName is the node's name in Consul, which is its datacenter's too, and in
// the broker. It differs for servers that have the same host name.
func NodeName(host string, id uuid.UUID) string {
	return Slug(host) + "-" + id.String()[:8]
}
