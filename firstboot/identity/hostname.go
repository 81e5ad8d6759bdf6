package identity

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

const (
	hostnameFile = "/etc/hostname"
	hostsFile    = "/etc/hosts"
	commonFile   = "/etc/xivo/common.conf"
)

// Hostname is the host name where XiVO and Debian keep it: /etc/hostname, the
// line of 127.0.1.1 in /etc/hosts, the table resolvconf, from which XiVO makes
// its files again, and /etc/xivo/common.conf where there is one. An empty
// domain means: the one that resolvconf has. A database whose resolvconf has no
// row yet is before its wizard, which will write it.
func Hostname(conn *pgx.Conn, p *platform.Platform, host, domain string) engine.Resource {
	host, rest, _ := strings.Cut(host, ".")
	if domain == "" {
		domain = rest
	}
	return hostName{conn: conn, platform: p, host: host, domain: domain}
}

type hostName struct {
	conn         *pgx.Conn
	platform     *platform.Platform
	host, domain string
}

// Diff compares the files and the row.
func (h hostName) Diff(ctx context.Context) ([]string, error) {
	row, domain, err := h.row(ctx)
	if err != nil {
		return nil, err
	}
	diff, err := h.files(domain).Diff(ctx)
	if row != "" {
		diff = append(diff, row)
	}
	return diff, err
}

// Apply writes the row, then the files.
func (h hostName) Apply(ctx context.Context) error {
	_, domain, err := h.row(ctx)
	if err != nil {
		return err
	}
	if _, err := h.conn.Exec(ctx, "UPDATE resolvconf SET hostname = $1, domain = $2", h.host, domain); err != nil {
		return fmt.Errorf("identity: host name in resolvconf: %w", err)
	}
	return h.files(domain).Apply(ctx)
}

// row says how resolvconf differs ("" where it does not), and which domain is
// the right one.
func (h hostName) row(ctx context.Context) (diff, domain string, err error) {
	type name struct{ Hostname, Domain string }
	found, err := postgres.Rows(ctx, h.conn, pgx.RowToStructByPos[name], "SELECT hostname, domain FROM resolvconf ORDER BY id")
	if err != nil {
		return "", "", fmt.Errorf("identity: read resolvconf: %w", err)
	}
	domain = h.domain
	if domain == "" && len(found) > 0 {
		domain = found[0].Domain
	}
	for _, f := range found {
		if want := (name{h.host, domain}); f != want {
			diff = "resolvconf does not say " + h.host
		}
	}
	return diff, domain, nil
}

// files are those that have the name.
func (h hostName) files(domain string) edits {
	l := edits{h.platform, []edit{
		{hostnameFile, "is not " + h.host, func([]byte) []byte { return []byte(h.host + "\n") }},
		{hostsFile, "does not have " + h.host + " on 127.0.1.1", func(have []byte) []byte { return inHosts(have, h.host, domain) }},
		{commonFile, "does not have " + h.host, func(have []byte) []byte { return inCommon(have, h.host, domain) }},
	}}
	// Made by XiVO; a server without it has nothing to correct.
	if !exists(h.platform.Path(commonFile)) {
		l.list = l.list[:2]
	}
	return l
}

// inHosts gives 127.0.1.1 one line in the form of XiVO's own template, and
// leaves all others. A line that has the names already stays, as others write
// this file too.
func inHosts(have []byte, host, domain string) []byte {
	fqdn := host
	if domain != "" {
		fqdn = host + "." + domain
	}
	line := "127.0.1.1\t" + fqdn + " localhost.localdomain"
	if fqdn != host {
		line += " " + host
	}

	var out []string
	done := false
	for l := range strings.Lines(string(have)) {
		l = strings.TrimSuffix(l, "\n")
		content, _, _ := strings.Cut(l, "#")
		fields := strings.Fields(content)
		if len(fields) == 0 || fields[0] != "127.0.1.1" {
			out = append(out, l)
			continue
		}
		if done {
			continue
		}
		done = true
		if len(fields) > 1 && fields[1] == fqdn && names(fields[1:], host, fqdn) {
			out = append(out, l)
		} else {
			out = append(out, line)
		}
	}
	if !done {
		out = append(out, line)
	}
	return []byte(strings.Join(out, "\n") + "\n")
}

// names says whether the host is among the names, and none of them but it and
// localhost's: an old name left behind would still resolve to this server.
func names(have []string, host, fqdn string) bool {
	found := false
	for _, n := range have {
		found = found || n == host
		if n != host && n != fqdn && !strings.HasPrefix(n, "localhost") {
			return false
		}
	}
	return found
}

var (
	commonHost   = regexp.MustCompile(`(?m)^XIVO_HOSTNAME=.*$`)
	commonDomain = regexp.MustCompile(`(?m)^XIVO_DOMAIN=.*$`)
)

// inCommon sets the two variables where the file has them.
func inCommon(have []byte, host, domain string) []byte {
	have = commonHost.ReplaceAllLiteral(have, []byte(`XIVO_HOSTNAME="`+host+`"`))
	return commonDomain.ReplaceAllLiteral(have, []byte(`XIVO_DOMAIN="`+domain+`"`))
}
