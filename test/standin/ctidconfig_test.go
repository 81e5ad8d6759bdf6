package standin

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCtidConfig(t *testing.T) {
	const ours = "service_discovery: {advertise_address: '192.168.1.10'}\nrest_api: {http: {listen: '0.0.0.0'}}\n"
	for name, c := range map[string]struct {
		files   map[string]string // below /etc/xivo-ctid
		listen  string
		address string
		stderr  string // part of it; "": nothing is said
	}{
		"nothing configured: all is local": {
			files:  map[string]string{"config.yml": ""},
			listen: "127.0.0.1", address: "localhost",
		},
		"conf.d wins over config.yml": {
			files: map[string]string{"config.yml": "rest_api: {http: {listen: 127.0.0.1}}\nservice_discovery: {advertise_address: localhost}",
				"conf.d/interconnection.yml": ours},
			listen: "0.0.0.0", address: "192.168.1.10",
		},
		"the file that sorts first wins": {
			files:  map[string]string{"config.yml": "", "conf.d/interconnection.yml": ours, "conf.d/050-address.yml": "service_discovery: {advertise_address: 10.9.9.9}"},
			listen: "0.0.0.0", address: "10.9.9.9",
		},
		"the file that sorts last loses": {
			files:  map[string]string{"config.yml": "", "conf.d/interconnection.yml": ours, "conf.d/zz.yml": "service_discovery: {advertise_address: 10.9.9.9}"},
			listen: "0.0.0.0", address: "192.168.1.10",
		},
		"a backup that ends in .yml is read, and wins": {
			files:  map[string]string{"config.yml": "", "conf.d/interconnection.yml": ours, "conf.d/interconnection.bak.yml": "service_discovery: {advertise_address: 10.9.9.9}"},
			listen: "0.0.0.0", address: "10.9.9.9",
		},
		"other endings and hidden files are not read": {
			files: map[string]string{"config.yml": "", "conf.d/.interconnection.yml": ours, "conf.d/interconnection.yaml": ours, "conf.d/interconnection.yml~": ours,
				"conf.d/interconnection.json": "{}"},
			listen: "127.0.0.1", address: "localhost",
		},
		"a file that does not parse is as good as absent": {
			files:  map[string]string{"config.yml": "", "conf.d/interconnection.yml": "rest_api:\n\thttp: {listen: 0.0.0.0}\t# comment\n"},
			listen: "127.0.0.1", address: "localhost", stderr: "interconnection.yml",
		},
		"a config.yml that does not parse, too": {
			files:  map[string]string{"config.yml": "{", "conf.d/interconnection.yml": ours},
			listen: "0.0.0.0", address: "192.168.1.10", stderr: "config.yml",
		},
		"check_url, which 16.03 has no more, does nothing": {
			files:  map[string]string{"config.yml": "", "conf.d/interconnection.yml": "service_discovery: {check_url: 'http://x/', advertise_address: a}"},
			listen: "127.0.0.1", address: "a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, text := range c.files {
				write(t, filepath.Join(dir, file), text)
			}
			var stderr bytes.Buffer
			config, err := loadCtidConfig(filepath.Join(dir, "config.yml"), &stderr)
			if err != nil {
				t.Fatal(err)
			}
			if got := config.RestAPI.HTTP.Listen; got != c.listen {
				t.Errorf("listen %q, want %q", got, c.listen)
			}
			if got, err := config.advertised(xivo1603); got != c.address || err != nil {
				t.Errorf("advertised %q (%v), want %q", got, err, c.address)
			}
			if got := stderr.String(); !strings.Contains(got, c.stderr) || (c.stderr == "") != (got == "") || strings.Count(got, "\n") > 1 {
				t.Errorf("stderr %q, want one line about %q", got, c.stderr)
			}
			if config.RestAPI.HTTP.Port != 9495 || config.ServiceDiscovery.AdvertisePort != 9495 {
				t.Error("a default beside a set key was lost: maps are merged deeply")
			}
		})
	}
}

func TestCtidConfigTakesTheTokenOfThePackage(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "config.yml"), "")
	write(t, filepath.Join(dir, "conf.d/050-xivo-consul-token.yml"), "consul: {token: t0ken}")
	write(t, filepath.Join(dir, "conf.d/050-xivo-consul-config.yml"), "consul: {scheme: https, host: localhost, port: 8500}")
	config, err := loadCtidConfig(filepath.Join(dir, "config.yml"), &bytes.Buffer{})
	if err != nil || config.Consul.Token != "t0ken" || config.Consul.Verify != DefaultCertificate {
		t.Errorf("%+v %v", config.Consul, err)
	}
}

func TestCtidAdvertisesAutoByTheInterface(t *testing.T) {
	var c ctidConfig
	c.ServiceDiscovery.AdvertiseAddress, c.ServiceDiscovery.Interface = "auto", "lo"
	if got, err := c.advertised(xivo1603); got != "127.0.0.1" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if got, err := c.advertised(xivo1520); got != "auto" || err != nil {
		t.Errorf("%q %v: 15.20 takes it for an address", got, err)
	}
	c.ServiceDiscovery.Interface = "nosuch0"
	if got, err := c.advertised(xivo1603); err == nil {
		t.Errorf("%q, want an error: 16.03 looks at no other interface", got)
	}
}

func TestCtidTags(t *testing.T) {
	var c ctidConfig
	c.ServiceDiscovery.ExtraTags = []string{"extra"}
	if diff := cmp.Diff([]string{"extra", uuidA, "xivo-ctid"}, c.tags(xivo1603, uuidA)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"extra", "xivo-ctid", uuidA}, c.tags(xivo1520, uuidA)); diff != "" {
		t.Error(diff)
	}
}
