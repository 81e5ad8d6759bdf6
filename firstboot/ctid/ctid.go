// Package ctid configures xivo-ctid so that other nodes find it and reach it.
package ctid

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const (
	fileName = "interconnection.yml"
	// listen is every address: the firewall says who may come.
	listen = "0.0.0.0"
	port   = "9495"
)

// Config is what ConfigFile returns.
type Config struct {
	platform *platform.Platform
	want     []byte
}

// ConfigFile is /etc/xivo-ctid/conf.d/interconnection.yml, with which xivo-ctid
// listens beyond loopback and registers itself in Consul at the address. It is
// read when xivo-ctid starts; whether it took effect shows only in the service
// that xivo-ctid registers (see Overridden for one reason why not).
func ConfigFile(p *platform.Platform, advertise string) *Config {
	// Everything is quoted: text that does not parse is skipped by xivo-ctid
	// without an error, and it then runs with what it is shipped with.
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Written by xivo-firstboot.\nrest_api:\n  http:\n    listen: %q\nservice_discovery:\n  advertise_address: %q\n", listen, advertise)
	if p.Traits.CtidCheckURL {
		fmt.Fprintf(&b, "  check_url: %q\n", "http://"+advertise+":"+port+"/0.1/infos")
	}
	return &Config{p, b.Bytes()}
}

func (c *Config) path() string { return c.platform.Path(platform.CtidConfigDir, fileName) }

// Diff compares the file.
func (c *Config) Diff(context.Context) ([]string, error) {
	name := filepath.Join(platform.CtidConfigDir, fileName)
	have, err := os.ReadFile(c.path())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []string{name + " is missing"}, nil
	case err != nil:
		return nil, fmt.Errorf("ctid: %w", err)
	case !bytes.Equal(have, c.want):
		return []string{name + " differs"}, nil
	}
	return nil, nil
}

// Apply writes it. Nothing else that ends in .yml is left in the folder.
func (c *Config) Apply(context.Context) error {
	if err := os.MkdirAll(filepath.Dir(c.path()), 0o755); err != nil {
		return fmt.Errorf("ctid: %w", err)
	}
	if err := platform.WriteFile(c.path(), c.want, 0o644); err != nil {
		return fmt.Errorf("ctid: %w", err)
	}
	return nil
}

// Overridden returns the names of the files in the same folder that set the
// address or the listener otherwise and win: xivo-ctid takes each key from the
// first file in alphabetical order that has it. Files that do not parse are
// skipped, as xivo-ctid does.
func Overridden(p *platform.Platform, advertise string) ([]string, error) {
	entries, err := os.ReadDir(p.Path(platform.CtidConfigDir)) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ctid: %w", err)
	}
	want := map[string]string{
		"rest_api http listen":                listen,
		"service_discovery advertise_address": advertise,
	}
	if p.Traits.CtidCheckURL {
		want["service_discovery check_url"] = "http://" + advertise + ":" + port + "/0.1/infos"
	}

	var winners []string
	for _, e := range entries {
		name := e.Name()
		if name >= fileName {
			break
		}
		if !strings.HasSuffix(name, ".yml") || strings.HasPrefix(name, ".") {
			continue
		}
		raw, err := os.ReadFile(p.Path(platform.CtidConfigDir, name))
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
