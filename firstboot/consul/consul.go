// Package consul wraps XiVO's Consul: its files, and its HTTPS API on loopback.
// Only firstboot imports it.
package consul

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// defaultPort is where XiVO's Consul serves HTTPS; plain HTTP is switched off.
const defaultPort = 8500

// configuration is what we need to know of Consul's merged configuration.
type configuration struct {
	Datacenter     string `json:"datacenter"`
	ACLMasterToken string `json:"acl_master_token"`
	Ports          struct {
		HTTPS int `json:"https"`
	} `json:"ports"`
}

// readConfiguration merges the files of the configuration folder as Consul
// does: by name, the later one wins.
func readConfiguration(p *platform.Platform) (configuration, error) {
	c := configuration{}
	c.Ports.HTTPS = defaultPort
	files, err := filepath.Glob(p.Path(platform.ConsulConfigDir, "*.json"))
	if err != nil {
		return c, err
	}
	if len(files) == 0 {
		return c, fmt.Errorf("consul: no *.json in %s: is XiVO's Consul installed?", platform.ConsulConfigDir)
	}
	slices.Sort(files)
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			return c, fmt.Errorf("consul: %w", err)
		}
		if err := json.Unmarshal(raw, &c); err != nil {
			return c, fmt.Errorf("consul: %s is not valid JSON, Consul will not start with it: %w", f, err)
		}
	}
	return c, nil
}

func readToken(p *platform.Platform) (string, error) {
	raw, err := os.ReadFile(p.Path(masterTokenFile))
	if err != nil {
		return "", fmt.Errorf("consul: the master token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fmt.Errorf("consul: %s is empty", masterTokenFile)
	}
	return token, nil
}

// runningAgents returns the process ids of the Consul agents of this machine.
func runningAgents(p *platform.Platform) ([]string, error) {
	files, err := filepath.Glob(p.Path("/proc/[0-9]*/cmdline"))
	if err != nil {
		return nil, err
	}
	var pids []string
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue // it ended meanwhile
		}
		args := strings.Split(string(raw), "\x00")
		if filepath.Base(args[0]) == "consul" && slices.Contains(args[1:], "agent") {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids, nil
}
