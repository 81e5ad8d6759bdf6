// Package ctid configures xivo-ctid and its successor xivo-ctid-ng so that other
// nodes find them and reach them, and they the other nodes.
package ctid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// Service is the name under which xivo-ctid registers in Consul, whatever the
// init system calls it.
const Service = "xivo-ctid"

const (
	fileName = "interconnection.yml"
	// listen is every address: the firewall says who may come.
	listen = "0.0.0.0"
	port   = "9495"

	ngConfigDir = "/etc/xivo-ctid-ng/conf.d"
)

// ConfigFiles matches the files that ConfigFile and Credentials write.
var ConfigFiles = []string{"/etc/xivo-*/conf.d/" + fileName, "/etc/wazo-*/conf.d/" + fileName}

// ConfigFile is /etc/xivo-ctid/conf.d/interconnection.yml, with which xivo-ctid
// registers itself in Consul at the address, and listens beyond loopback where
// the peers' xivo-ctid ask it. Where xivo-ctid-ng looks up other daemons of a
// peer (Traits.PresenceCredentials), every daemon with a conf.d gets the same
// address. The files are read when the daemons start; whether xivo-ctid's took
// effect shows only in the service that it registers (see Overridden for one
// reason why not).
func ConfigFile(p *platform.Platform, advertise string) engine.Resource {
	return config{p, advertise}
}

type config struct {
	platform  *platform.Platform
	advertise string
}

// wanted returns the wanted content by file.
func (c config) wanted() (map[string][]byte, error) {
	wanted := map[string][]byte{}
	if c.platform.Traits.PresenceCredentials {
		for _, pattern := range ConfigFiles {
			dirs, err := filepath.Glob(c.platform.Path(filepath.Dir(pattern)))
			if err != nil {
				return nil, err
			}
			for _, dir := range dirs {
				wanted[filepath.Join(dir, fileName)] = discovery(c.advertise)
			}
		}
	}
	own := discovery(c.advertise)
	if c.platform.Traits.CtidCheckURL {
		own = fmt.Appendf(own, "  check_url: %q\n", checkURL(c.advertise))
	}
	if c.platform.Traits.CtidAsksPeers {
		own = fmt.Appendf(own, "rest_api:\n  http:\n    listen: %q\n", listen)
	}
	wanted[c.platform.Path(platform.CtidConfigDir, fileName)] = own
	return wanted, nil
}

// discovery is what every daemon is told. Everything is quoted: text that does
// not parse is skipped by XiVO's daemons without an error, and they then run
// with what they are shipped with.
func discovery(advertise string) []byte {
	return fmt.Appendf(nil, "# Written by xivo-firstboot.\nservice_discovery:\n  advertise_address: %q\n", advertise)
}

func checkURL(advertise string) string { return "http://" + advertise + ":" + port + "/0.1/infos" }

// Diff compares the files.
func (c config) Diff(context.Context) ([]string, error) {
	_, diff, err := c.differing()
	slices.Sort(diff)
	return diff, err
}

// Apply writes those that differ. Nothing else that ends in .yml is left in the
// folders.
func (c config) Apply(context.Context) error {
	differing, _, err := c.differing()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.platform.Path(platform.CtidConfigDir), 0o755); err != nil {
		return fmt.Errorf("ctid: %w", err)
	}
	for name, want := range differing {
		attr, err := files.Kept(name, 0o644)
		if err == nil {
			err = files.WriteFile(name, want, attr)
		}
		if err != nil {
			return fmt.Errorf("ctid: %w", err)
		}
	}
	return nil
}

// differing returns the wanted content of the files that differ, and what differs.
func (c config) differing() (map[string][]byte, []string, error) {
	differing, err := c.wanted()
	if err != nil {
		return nil, nil, fmt.Errorf("ctid: %w", err)
	}
	var diff []string
	for name, want := range differing {
		var d []string
		// Credentials writes on where this ends.
		have, err := files.ReadFile(name)
		if err != nil || name != c.platform.Path(ngConfigDir, fileName) || !bytes.HasPrefix(have, want) {
			if d, err = differs(c.platform, name, want); err != nil {
				return nil, nil, err
			}
		}
		if d == nil {
			delete(differing, name)
		}
		diff = append(diff, d...)
	}
	return differing, diff, nil
}

// differs says how a file differs from the content.
func differs(p *platform.Platform, name string, want []byte) ([]string, error) {
	told := "/" + strings.TrimPrefix(strings.TrimPrefix(name, p.Root), "/")
	have, err := files.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []string{told + " is missing"}, nil
	case err != nil:
		return nil, fmt.Errorf("ctid: %w", err)
	case !bytes.Equal(have, want):
		return []string{told + " differs"}, nil
	}
	return nil, nil
}

// Peer is another node, as xivo-ctid-ng is told of it.
type Peer struct {
	Name string // of the entry: letters and digits
	UUID uuid.UUID
}

// Credentials is /etc/xivo-ctid-ng/conf.d/interconnection.yml: the address of
// ConfigFile, and the web-service account with which xivo-ctid-ng gets a token
// of each peer's xivo-auth, to ask that peer's xivo-ctid-ng for statuses. It is
// read when xivo-ctid-ng starts, and by those only who may read the server's
// TLS key, as xivo-ctid-ng may. A server without xivo-ctid-ng has none.
func Credentials(p *platform.Platform, advertise, account string, password secret.Secret, peers []Peer) engine.Resource {
	want := discovery(advertise)
	if len(peers) > 0 {
		want = append(want, "remote_credentials:\n"...)
	}
	for _, peer := range slices.SortedFunc(slices.Values(peers), func(a, b Peer) int { return strings.Compare(a.Name, b.Name) }) {
		want = fmt.Appendf(want, "  %s:\n    xivo_uuid: %q\n    service_id: %q\n    service_key: %q\n", peer.Name, peer.UUID, account, password.Reveal())
	}
	return credentials{p, p.Path(ngConfigDir, fileName), want}
}

type credentials struct {
	platform *platform.Platform
	name     string
	want     []byte
}

// Diff compares the file.
func (c credentials) Diff(context.Context) ([]string, error) {
	if _, err := os.Stat(filepath.Dir(c.name)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	diff, err := differs(c.platform, c.name, c.want)
	if diff != nil || err != nil {
		return diff, err
	}
	have, err := files.Kept(c.name, 0)
	if err != nil {
		return nil, fmt.Errorf("ctid: %w", err)
	}
	want, err := c.access()
	if err != nil {
		return nil, err
	}
	if have.Mode != want.Mode || have.GID != want.GID {
		return []string{filepath.Join(ngConfigDir, fileName) + " may be read by others than xivo-ctid-ng, or not by it"}, nil
	}
	return nil, nil
}

// Apply writes it.
func (c credentials) Apply(context.Context) error {
	attr, err := c.access()
	if err != nil {
		return err
	}
	if err := files.WriteFile(c.name, c.want, attr); err != nil {
		return fmt.Errorf("ctid: %w", err)
	}
	return nil
}

// access is who may read the file: its owner, and the group of the TLS key.
func (c credentials) access() (files.Attr, error) {
	key, err := os.Stat(c.platform.Path(platform.CertificateKey))
	if err != nil {
		return files.Attr{}, fmt.Errorf("ctid: %w", err)
	}
	attr, err := files.Kept(c.name, 0)
	if err != nil {
		return files.Attr{}, fmt.Errorf("ctid: %w", err)
	}
	attr.Mode, attr.GID = 0o640, int(key.Sys().(*syscall.Stat_t).Gid)
	return attr, nil
}

// Overridden returns the names of the files in xivo-ctid's conf.d that set the
// address or the listener otherwise, or keep xivo-ctid out of Consul, and win:
// xivo-ctid takes each key from the first file in alphabetical order that has it.
// Files that do not parse are skipped, as xivo-ctid does.
func Overridden(p *platform.Platform, advertise string) ([]string, error) {
	dir := p.Path(platform.CtidConfigDir)
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ctid: %w", err)
	}
	want := ownKeys(p, advertise)
	var winners []string
	for _, e := range entries {
		name := e.Name()
		if name >= fileName {
			break
		}
		if !strings.HasSuffix(name, ".yml") || strings.HasPrefix(name, ".") {
			continue
		}
		raw, err := readLinked(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("ctid: %w", err)
		}
		var set map[string]any
		if yaml.Unmarshal(raw, &set) != nil {
			continue
		}
		for key, value := range want {
			if found, ok := lookup(set, strings.Fields(key)); ok && found != value {
				winners = append(winners, name)
				break
			}
		}
	}
	return winners, nil
}

// ownKeys are the values that xivo-ctid must have, by their path.
func ownKeys(p *platform.Platform, advertise string) map[string]string {
	want := map[string]string{"service_discovery advertise_address": advertise}
	if p.Traits.CtidCheckURL {
		want["service_discovery check_url"] = checkURL(advertise)
	} else {
		want["service_discovery enabled"] = "true"
	}
	if p.Traits.CtidAsksPeers {
		want["rest_api http listen"] = listen
		want["rest_api http port"] = port
	}
	return want
}

// readLinked reads a file of a conf.d. XiVO's packages make some of them links to
// the files in /var/lib/consul, which Consul's user owns: a link is followed once,
// and what it leads to is a regular file or refused.
func readLinked(name string) ([]byte, error) {
	target, err := os.Readlink(name)
	switch {
	case errors.Is(err, syscall.EINVAL):
		target = name // no link
	case err != nil:
		return nil, err
	case !filepath.IsAbs(target):
		target = filepath.Join(filepath.Dir(name), target)
	}
	return files.ReadFile(target)
}

// lookup returns the scalar at a path, as text. A value in the way that is no
// map wins over all that is below it.
func lookup(set any, path []string) (string, bool) {
	for _, key := range path {
		m, ok := set.(map[string]any)
		if !ok {
			return fmt.Sprint(set), true
		}
		if set, ok = m[key]; !ok {
			return "", false
		}
	}
	return fmt.Sprint(set), true
}
