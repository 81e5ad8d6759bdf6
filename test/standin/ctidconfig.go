package standin

import (
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// ctidConfig is the merged configuration of xivo-ctid, as far as it matters.
type ctidConfig struct {
	RestAPI struct {
		HTTP struct {
			Listen string `yaml:"listen"`
			Port   int    `yaml:"port"`
		} `yaml:"http"`
	} `yaml:"rest_api"`
	Bus struct {
		Username     string `yaml:"username"`
		Password     string `yaml:"password"`
		Host         string `yaml:"host"`
		Port         int    `yaml:"port"`
		ExchangeName string `yaml:"exchange_name"`
	} `yaml:"bus"`
	Consul struct {
		Scheme string `yaml:"scheme"`
		Host   string `yaml:"host"`
		Port   int    `yaml:"port"`
		Token  string `yaml:"token"`
		Verify any    `yaml:"verify"` // the file of the server's certificate, true or false
	} `yaml:"consul"`
	ServiceDiscovery struct {
		Enabled          bool     `yaml:"enabled"`
		AdvertiseAddress string   `yaml:"advertise_address"`
		Interface        string   `yaml:"advertise_address_interface"`
		AdvertisePort    int      `yaml:"advertise_port"`
		CheckURL         string   `yaml:"check_url"`
		CheckURLInterval string   `yaml:"check_url_interval"` // as Consul writes durations
		CheckURLTimeout  string   `yaml:"check_url_timeout"`  // as Consul writes durations
		TTLInterval      float64  `yaml:"ttl_interval"`       // seconds
		RefreshInterval  float64  `yaml:"refresh_interval"`   // seconds
		RetryInterval    float64  `yaml:"retry_interval"`     // seconds
		ExtraTags        []string `yaml:"extra_tags"`
	} `yaml:"service_discovery"`
}

const ctidDefaults = `
rest_api: {http: {listen: 127.0.0.1, port: 9495}}
bus: {username: guest, password: guest, host: localhost, port: 5672, exchange_name: xivo}
consul: {scheme: https, host: localhost, port: 8500, token: '', verify: /usr/share/xivo-certs/server.crt}
service_discovery:
  enabled: true
  advertise_address: localhost
  advertise_address_interface: eth0
  advertise_port: 9495
  check_url: http://localhost:9495/0.1/infos
  check_url_interval: 300s
  check_url_timeout: 10s
  ttl_interval: 30
  refresh_interval: 27
  retry_interval: 2
  extra_tags: []
`

// loadCtidConfig merges the files below conf.d beside the main file, then the
// main file, then the defaults: the first that sets a key wins, maps are merged
// deeply. Only names that end in .yml and do not start with a dot are read, in
// the order of their bytes. A file that does not parse is as good as absent:
// one line on stderr is all that tells.
func loadCtidConfig(file string, stderr io.Writer) (ctidConfig, error) {
	folder := filepath.Join(filepath.Dir(file), "conf.d")
	entries, _ := os.ReadDir(folder) // sorted by name
	var files []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".yml") && !strings.HasPrefix(e.Name(), ".") {
			files = append(files, filepath.Join(folder, e.Name()))
		}
	}
	merged := map[string]any{}
	for _, name := range append(files, file) {
		text, err := os.ReadFile(name)
		var values map[string]any
		if err == nil {
			err = yaml.Unmarshal(text, &values)
		}
		if err != nil {
			fmt.Fprintf(stderr, "Could not read config file %s: %s\n", name, strings.ReplaceAll(err.Error(), "\n", " "))
			continue
		}
		mergeBelow(merged, values)
	}
	var defaults map[string]any
	if err := yaml.Unmarshal([]byte(ctidDefaults), &defaults); err != nil {
		return ctidConfig{}, err
	}
	mergeBelow(merged, defaults)

	text, err := yaml.Marshal(merged)
	if err != nil {
		return ctidConfig{}, err
	}
	var config ctidConfig
	if err := yaml.Unmarshal(text, &config); err != nil {
		return ctidConfig{}, fmt.Errorf("configuration of xivo-ctid: %w", err)
	}
	return config, nil
}

// mergeBelow adds what low has and top has not.
func mergeBelow(top, low map[string]any) {
	for key, v := range low {
		have, ok := top[key]
		if !ok {
			if m, ok := v.(map[string]any); ok {
				v = maps.Clone(m)
			}
			top[key] = v
			continue
		}
		haveMap, a := have.(map[string]any)
		lowMap, b := v.(map[string]any)
		if a && b {
			mergeBelow(haveMap, lowMap)
		}
	}
}

// advertised is the address to register: what is configured, letter for
// letter, except "auto", which is the IPv4 address of the named interface.
func (c ctidConfig) advertised(r Release) (string, error) {
	sd := c.ServiceDiscovery
	if sd.AdvertiseAddress != "auto" || !r.ttlCheck() {
		return sd.AdvertiseAddress, nil
	}
	i, err := net.InterfaceByName(sd.Interface)
	if err != nil {
		return "", fmt.Errorf("advertise address of %s: %w", sd.Interface, err)
	}
	addresses, err := i.Addrs()
	if err != nil {
		return "", fmt.Errorf("advertise address of %s: %w", sd.Interface, err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			return n.IP.String(), nil
		}
	}
	return "", fmt.Errorf("advertise address of %s: it has no IPv4 address", sd.Interface)
}

// tags are what other XiVO find this one by.
func (c ctidConfig) tags(r Release, uuid string) []string {
	tags := slices.Clone(c.ServiceDiscovery.ExtraTags)
	if !r.ttlCheck() {
		return append(tags, "xivo-ctid", uuid)
	}
	return append(tags, uuid, "xivo-ctid")
}

// check is what Consul is to know the service's health by.
func (c ctidConfig) check(r Release) map[string]string {
	sd := c.ServiceDiscovery
	if !r.ttlCheck() {
		return map[string]string{"HTTP": sd.CheckURL, "Interval": sd.CheckURLInterval, "Timeout": sd.CheckURLTimeout}
	}
	return map[string]string{"TTL": seconds(sd.TTLInterval).String()}
}
