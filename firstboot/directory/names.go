// Package directory makes the users of the other nodes searchable: the account
// with which the others read ours, and for each other a source, its definition,
// its fields and its place in the contexts. xivo-dird reads all of it at its
// start only.
//
// The statements work on PostgreSQL 9.1 and on every schema from 15.19 on:
// columns are named, values are explicit, and which columns there are is looked
// up, because upgraded databases differ from fresh ones.
package directory

import (
	"encoding/hex"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/google/uuid"
)

// confdPort is where every xivo-confd serves HTTPS to others.
const confdPort = "9486"

// Name is the name of everything that this node keeps for a peer: its source,
// definition and context entries, and its upstream in the broker. XiVO's web
// interface accepts only letters and digits.
func Name(id uuid.UUID) string {
	return "xivomesh" + hex.EncodeToString(id[:6])
}

var (
	meshName    = regexp.MustCompile(`^xivomesh[0-9a-f]{12}$`)
	meshAccount = regexp.MustCompile(`^xivo-mesh-[0-9a-f]{6}$`)
	// host is what xivo-confgend's parser survives: it splits at colons, and one
	// address that it cannot split removes every source of the server.
	host = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)
)

// OfMesh says whether a name is one that Name makes.
func OfMesh(name string) bool { return meshName.MatchString(name) }

// uriOf is the one spelling that works: no path, no slash at the end.
func uriOf(address string) (string, error) {
	if !host.MatchString(address) {
		return "", fmt.Errorf("directory: %q cannot be the address of a source: xivo-dird takes a host name or an IPv4", address)
	}
	return "https://" + net.JoinHostPort(address, confdPort), nil
}

// hostOf returns the host of a source's uri in small letters, whatever way it
// was typed; port is that of confd where none is given.
func hostOf(uri string) (host, port string) {
	uri = strings.TrimSpace(uri)
	if !strings.Contains(uri, "://") {
		uri = "//" + uri
	}
	u, err := url.Parse(uri)
	if err != nil {
		return "", ""
	}
	if port = u.Port(); port == "" {
		port = confdPort
	}
	return strings.TrimSuffix(strings.ToLower(u.Hostname()), "."), port
}

// local says whether a uri is this server's own confd.
func local(uri string) bool {
	switch host, port := hostOf(uri); host {
	case "localhost", "127.0.0.1":
		return port == "9487" || port == confdPort
	}
	return false
}
