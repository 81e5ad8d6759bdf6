package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	// configFile sorts after config.json, whose settings it overrides. Its
	// lines must not hold `"http":` or `"https":`: XiVO's scripts look for the
	// last such line of the folder to find the port.
	configFile      = platform.ConsulConfigDir + "/interconnection.json"
	packagedFile    = platform.ConsulConfigDir + "/config.json"
	masterTokenFile = platform.ConsulDataDir + "/master_token"
	daemonTokenFile = platform.ConsulDataDir + "/default_xivo_consul_token.yml"
)

// Settings is what makes a Consul this node's.
type Settings struct {
	// Name is the datacenter, the ACL datacenter and the node name: each node
	// of a mesh is a datacenter of its own.
	Name string
	// Advertise is the IPv4 address at which the others reach it.
	Advertise string
	// JoinWAN are the addresses that it goes on trying to join.
	JoinWAN []string
	// MasterToken is the same on all nodes: up to XiVO 16.14, xivo-ctid asks
	// the other datacenters with its own token.
	MasterToken secret.Secret
	// GossipKey encrypts the gossip; "" for none.
	GossipKey secret.Secret
}

// document is interconnection.json. Keys that a version does not know are
// fatal to it in Consul 0.5 to 0.7.
type document struct {
	Datacenter           string       `json:"datacenter"`
	ACLDatacenter        string       `json:"acl_datacenter"`
	NodeName             string       `json:"node_name"`
	BindAddr             string       `json:"bind_addr"`
	AdvertiseAddr        string       `json:"advertise_addr"`
	ClientAddr           string       `json:"client_addr"`
	SkipLeaveOnInterrupt bool         `json:"skip_leave_on_interrupt"`
	RetryJoinWAN         []string     `json:"retry_join_wan,omitempty"`
	Encrypt              string       `json:"encrypt,omitempty"`
	ACLMasterToken       string       `json:"acl_master_token"`
	Performance          *performance `json:"performance,omitempty"`
}

type performance struct {
	RaftMultiplier int `json:"raft_multiplier"`
}

// ConfigFile is interconnection.json with these settings, readable by Consul's
// user only: it holds the master token.
func ConfigFile(p *platform.Platform, s Settings) *Config { return &Config{p, s} }

// Config is what ConfigFile returns.
type Config struct {
	platform *platform.Platform
	settings Settings
}

func (c *Config) content() []byte {
	s := c.settings
	d := document{
		Datacenter:    s.Name,
		ACLDatacenter: s.Name,
		NodeName:      s.Name,
		// The WAN needs the server and gossip ports on all addresses; the API
		// stays on loopback.
		BindAddr:             "0.0.0.0",
		AdvertiseAddr:        s.Advertise,
		ClientAddr:           "127.0.0.1",
		SkipLeaveOnInterrupt: true,
		RetryJoinWAN:         s.JoinWAN,
		Encrypt:              s.GossipKey.Reveal(),
		ACLMasterToken:       s.MasterToken.Reveal(),
	}
	if c.platform.Traits.ConsulPerformance {
		d.Performance = &performance{RaftMultiplier: 1}
	}
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		panic(err) // strings and a number
	}
	return append(raw, '\n')
}

// Diff says whether the file is as it should be.
func (c *Config) Diff(context.Context) ([]string, error) {
	have, err := os.ReadFile(c.platform.Path(configFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []string{configFile + " is missing"}, nil
	case err != nil:
		return nil, fmt.Errorf("consul: %w", err)
	case !bytes.Equal(have, c.content()):
		return []string{fmt.Sprintf("%s does not say that this node is %s at %s", configFile, c.settings.Name, c.settings.Advertise)}, nil
	}
	return nil, nil
}

// Apply writes the file, for Consul's user where there is one.
func (c *Config) Apply(context.Context) error {
	name := c.platform.Path(configFile)
	if err := platform.WriteFile(name, c.content(), 0o600); err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	return c.own(name)
}

func (c *Config) own(name string) error {
	u, err := user.Lookup("consul")
	if err != nil {
		var unknown user.UnknownUserError
		if errors.As(err, &unknown) {
			return nil
		}
		return fmt.Errorf("consul: %w", err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	return os.Chown(name, uid, gid)
}

// tokenPlace is a file that holds the master token, and where in it.
type tokenPlace struct {
	file    string
	pattern *regexp.Regexp // the token is its second group
}

var tokenPlaces = []tokenPlace{
	{masterTokenFile, regexp.MustCompile(`^(\s*)(\S+)`)},
	{packagedFile, regexp.MustCompile(`("acl_master_token"\s*:\s*")([^"]*)`)},
	{daemonTokenFile, regexp.MustCompile(`(?m)^(\s*token:[ \t]*)(\S+)`)},
}

// TokenFiles is the same master token in the three files of XiVO's package that
// hold it. All else in them stays as it is, to the byte.
func TokenFiles(p *platform.Platform, token secret.Secret) *Tokens { return &Tokens{p, token} }

// Tokens is what TokenFiles returns.
type Tokens struct {
	platform *platform.Platform
	token    secret.Secret
}

func (t *Tokens) each(do func(place tokenPlace, have, want []byte) error) error {
	for _, place := range tokenPlaces {
		have, err := os.ReadFile(t.platform.Path(place.file))
		if err != nil {
			return fmt.Errorf("consul: %w", err)
		}
		at := place.pattern.FindSubmatchIndex(have)
		if at == nil {
			return fmt.Errorf("consul: %s holds no master token where XiVO's package puts it", place.file)
		}
		want := append(append(bytes.Clone(have[:at[4]]), t.token.Reveal()...), have[at[5]:]...)
		if err := do(place, have, want); err != nil {
			return err
		}
	}
	return nil
}

// Diff names the files that hold another token.
func (t *Tokens) Diff(context.Context) ([]string, error) {
	var diff []string
	err := t.each(func(place tokenPlace, have, want []byte) error {
		if !bytes.Equal(have, want) {
			diff = append(diff, place.file+" holds another master token")
		}
		return nil
	})
	return diff, err
}

// Apply writes the token into them.
func (t *Tokens) Apply(context.Context) error {
	return t.each(func(place tokenPlace, have, want []byte) error {
		if bytes.Equal(have, want) {
			return nil
		}
		return platform.WriteFile(t.platform.Path(place.file), want, 0o600)
	})
}

// emptied are the folders whose content, and the files that, are one node's
// own. The tokens in the same folder are not among them: daemons link to them.
var emptied = []string{"raft", "serf", "services", "checks", "checkpoint-signature", "tmp", "node-id"}

// Emptied is the absence of Consul's state: raft, gossip and its keyrings,
// registrations and node id. It refuses to look away while an agent runs.
func Emptied(p *platform.Platform) *State { return &State{p} }

// State is what Emptied returns.
type State struct{ platform *platform.Platform }

func (s *State) found() ([]string, error) {
	var out []string
	for _, name := range emptied {
		path := filepath.Join(platform.ConsulDataDir, name)
		_, err := os.Lstat(s.platform.Path(path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("consul: %w", err)
		}
		out = append(out, path)
	}
	return out, nil
}

// Diff names what is there.
func (s *State) Diff(context.Context) ([]string, error) { return s.found() }

// Apply removes it.
func (s *State) Apply(context.Context) error {
	pids, err := runningAgents(s.platform)
	if err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	if len(pids) > 0 {
		return fmt.Errorf("consul: it still runs (pid %s), so its state stays: stop it first", strings.Join(pids, " "))
	}
	found, err := s.found()
	for _, path := range found {
		err = errors.Join(err, os.RemoveAll(s.platform.Path(path)))
	}
	return err
}
