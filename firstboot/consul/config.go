package consul

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

const (
	packageFile = platform.ConsulConfigDir + "/config.json"
	// Consul merges its folder by name and the later file wins: i sorts after c.
	ourFile = platform.ConsulConfigDir + "/interconnection.json"
)

// Settings is what one node of the mesh tells its Consul.
type Settings struct {
	// Name is the datacenter, the ACL datacenter and the node name, and must be
	// the node's alone: [a-z0-9-], no dots.
	Name string
	// Advertise is the IPv4 under which the other nodes reach this one.
	Advertise string
	// Bind: Consul listens there only, which the machine must have whenever it starts.
	Bind bool
	// MasterToken is the ACL master token.
	MasterToken secret.Secret
	// GossipKey encrypts the gossip: 16 bytes in base64, or "" for plain gossip.
	GossipKey secret.Secret
}

var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func (s Settings) validate() error {
	if !validName.MatchString(s.Name) {
		return fmt.Errorf("the name %q is not a datacenter name: letters a-z, digits and dashes only", s.Name)
	}
	if a, err := netip.ParseAddr(s.Advertise); err != nil || !a.Is4() || a.IsUnspecified() {
		return fmt.Errorf("the advertise address %q is not an IPv4 of this node", s.Advertise)
	}
	if s.MasterToken == "" {
		return errors.New("the master token is empty")
	}
	if key, err := base64.StdEncoding.DecodeString(s.GossipKey.Reveal()); err != nil || len(key) != 0 && len(key) != 16 {
		return errors.New("the gossip key is not 16 bytes in base64")
	}
	return nil
}

// document is interconnection.json. Consul 0.5 to 0.7 refuse to start on a key
// that they do not know. There is no `ports`: XiVO's start scripts take the
// port from the last "https" that they find in the folder.
type document struct {
	ClientAddr           string       `json:"client_addr"`
	BindAddr             string       `json:"bind_addr"`
	AdvertiseAddr        string       `json:"advertise_addr"`
	Datacenter           string       `json:"datacenter"`
	ACLDatacenter        string       `json:"acl_datacenter"`
	NodeName             string       `json:"node_name"`
	ACLMasterToken       string       `json:"acl_master_token"`
	Encrypt              string       `json:"encrypt,omitempty"`
	SkipLeaveOnInterrupt bool         `json:"skip_leave_on_interrupt"`
	Performance          *performance `json:"performance,omitempty"`
}

type performance struct {
	RaftMultiplier int `json:"raft_multiplier"`
}

// ConfigFile is /etc/consul/xivo/interconnection.json for s: strict JSON, only
// keys that this version's Consul knows, mode 0600, with the owner that the
// package's config.json has. Consul reads it at its next start. A file of the
// folder that sorts later and sets one of our keys otherwise is an error, and so
// is a folder that Consul would not start on, with what Consul says to it. The
// folder is Consul's user's own: where one of the names that end in .json is no
// regular file, that is an error as well.
func ConfigFile(p *platform.Platform, s Settings) engine.Resource {
	return configFile{p, s}
}

type configFile struct {
	p *platform.Platform
	s Settings
}

// Diff names the keys that differ, and the values of those in toldKeys.
func (c configFile) Diff(ctx context.Context) ([]string, error) {
	want, err := c.render()
	if err != nil {
		return nil, c.fail(err)
	}
	wantAttr, err := c.attr()
	if err != nil {
		return nil, c.fail(err)
	}
	// Before ours is written: it would take effect in part, or not at all.
	if err := errors.Join(c.overridden(want), c.accepted(ctx, want)); err != nil {
		return nil, err
	}

	name := c.p.Path(ourFile)
	have, err := files.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return []string{ourFile + ": missing"}, nil
	}
	if err != nil {
		return nil, c.fail(err)
	}
	haveAttr, err := files.Kept(name, 0)
	if err != nil {
		return nil, c.fail(err)
	}

	diff := diffKeys(have, want)
	if haveAttr.Mode != wantAttr.Mode {
		diff = append(diff, fmt.Sprintf("%s: mode %04o, not %04o", ourFile, haveAttr.Mode, wantAttr.Mode))
	}
	if haveAttr.UID != wantAttr.UID || haveAttr.GID != wantAttr.GID {
		diff = append(diff, ourFile+": owner is not config.json's")
	}
	return diff, nil
}

// Apply writes the file.
func (c configFile) Apply(context.Context) error {
	data, err := c.render()
	if err != nil {
		return c.fail(err)
	}
	attr, err := c.attr()
	if err != nil {
		return c.fail(err)
	}
	if err := files.WriteFile(c.p.Path(ourFile), data, attr); err != nil {
		return c.fail(err)
	}
	return nil
}

// attr is who may read the file: config.json's owner alone.
func (c configFile) attr() (files.Attr, error) {
	theirs := c.p.Path(packageFile)
	if _, err := os.Lstat(theirs); err != nil {
		return files.Attr{}, err
	}
	attr, err := files.Kept(theirs, 0)
	attr.Mode = 0o600
	return attr, err
}

// BindAddress is where ConfigFile lets Consul listen, if that is one address.
func BindAddress(p *platform.Platform) (netip.Addr, bool) {
	data, err := files.ReadFile(p.Path(ourFile))
	if err != nil {
		return netip.Addr{}, false
	}
	object, err := decodeObject(data)
	if err != nil {
		return netip.Addr{}, false
	}
	text, _ := object["bind_addr"].(string)
	a, err := netip.ParseAddr(text)
	return a, err == nil && !a.IsUnspecified()
}

func (c configFile) fail(err error) error {
	return fmt.Errorf("consul: %s: %w", ourFile, err)
}

// bind is not the address of a LAN: Consul would fail to start when DHCP is late.
func (s Settings) bind() string {
	if s.Bind {
		return s.Advertise
	}
	return "0.0.0.0"
}

func (c configFile) render() ([]byte, error) {
	if err := c.s.validate(); err != nil {
		return nil, err
	}
	doc := document{
		// The API has no authentication worth the name: it stays on loopback.
		ClientAddr:     "127.0.0.1",
		BindAddr:       c.s.bind(),
		AdvertiseAddr:  c.s.Advertise,
		Datacenter:     c.s.Name,
		ACLDatacenter:  c.s.Name,
		NodeName:       c.s.Name,
		ACLMasterToken: c.s.MasterToken.Reveal(),
		Encrypt:        c.s.GossipKey.Reveal(),
		// Consul up to 0.6.4 leaves the mesh at each stop otherwise.
		SkipLeaveOnInterrupt: true,
	}
	if c.p.Traits.ConsulPerformance {
		doc.Performance = &performance{RaftMultiplier: 1}
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	return append(data, '\n'), err
}

// overridden tells which file that sorts after ours takes one of our keys.
func (c configFile) overridden(data []byte) error {
	want, err := decodeObject(data)
	if err != nil {
		return err
	}
	all, err := readConfig(c.p)
	if err != nil {
		return c.fail(err)
	}
	for _, f := range all {
		if filepath.Base(f.name) <= filepath.Base(ourFile) {
			continue
		}
		have, err := decodeObject(f.content)
		if err != nil {
			return fmt.Errorf("consul: %s: %w", f.name, err)
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			// Lists are joined by Consul, so they take nothing away.
			if v, ok := have[key]; ok && key != "retry_join_wan" && !reflect.DeepEqual(v, want[key]) {
				return fmt.Errorf("consul: %s comes after interconnection.json and sets %q otherwise; remove the key there", f.name, key)
			}
		}
	}
	return nil
}

// accepted asks Consul itself whether it would start on its folder with our file
// in it. Where there is no Consul, nobody is asked.
func (c configFile) accepted(ctx context.Context, ours []byte) error {
	program, err := exec.LookPath("consul")
	if err != nil {
		return nil
	}
	asked, err := os.Stat(program)
	if err != nil {
		return c.fail(err)
	}
	dir, err := os.MkdirTemp("", "consul") // root's alone
	if err != nil {
		return c.fail(err)
	}
	defer os.RemoveAll(dir)
	all, err := readConfig(c.p)
	if err != nil {
		return c.fail(err)
	}
	var untold []secret.Secret
	// The last of a name counts.
	folder := map[string][]byte{}
	for _, f := range append(all, file{ourFile, ours}) {
		// What is no JSON at all is for Consul to say.
		if object, err := decodeObject(f.content); err == nil {
			untold = append(untold, values(object)...)
		}
		folder[filepath.Base(f.name)] = f.content
	}
	sum := sha256.New()
	fmt.Fprintln(sum, program, asked.Size(), asked.ModTime())
	for _, name := range slices.Sorted(maps.Keys(folder)) {
		fmt.Fprintf(sum, "%q %q\n", name, folder[name])
		if err := os.WriteFile(filepath.Join(dir, name), folder[name], 0o600); err != nil {
			return c.fail(err)
		}
	}
	// One Consul says the same of the same files, and takes its time.
	key := string(sum.Sum(nil))
	if _, before := acceptedFolders.Load(key); before {
		return nil
	}
	if err := validated(ctx, dir, untold); err != nil {
		return err
	}
	acceptedFolders.Store(key, true)
	return nil
}

// values are the texts of a configuration that are not to be told. Short ones are
// words of Consul's own.
func values(config map[string]any) (texts []secret.Secret) {
	var collect func(v any)
	collect = func(v any) {
		switch v := v.(type) {
		case string:
			if len(v) >= 8 && !filepath.IsAbs(v) {
				texts = append(texts, secret.Secret(v))
			}
		case []any:
			for _, item := range v {
				collect(item)
			}
		case map[string]any:
			for _, item := range v {
				collect(item)
			}
		}
	}
	for key, v := range config {
		if !slices.Contains(toldKeys, key) {
			collect(v)
		}
	}
	return texts
}

// acceptedFolders are those that Consul would start on, by a sum of their files, as
// this process was told.
var acceptedFolders sync.Map

// validated asks Consul about a folder with a copy of its configuration. The
// command for it is `configtest` in XiVO's oldest ones, and `validate` in later
// ones, which know no configtest.
func validated(ctx context.Context, dir string, untold []secret.Secret) error {
	for _, args := range [][]string{{"validate", dir}, {"configtest", "-config-dir", dir}} {
		// A tenth of a second on an idle machine, and more than a minute on one that
		// is emulated and busy: a boot must not fail for that.
		ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "consul", args...).CombinedOutput()
		said := strings.Join(strings.Fields(string(out)), " ")
		switch {
		case err == nil:
			return nil
		case strings.HasPrefix(strings.ToLower(said), "usage: consul"):
			continue // it does not know the command
		}
		said = strings.ReplaceAll(said, dir, platform.ConsulConfigDir)
		return fmt.Errorf("consul: it would not start on %s: %w: %w", platform.ConsulConfigDir, err, secret.Redact(errors.New(said), untold...))
	}
	return fmt.Errorf("consul: it can neither validate nor configtest %s", platform.ConsulConfigDir)
}

// toldKeys are the settings whose values may be told. All others are somebody's own:
// names of another node, or tokens under names that no list of secrets would have.
var toldKeys = []string{
	"advertise_addr", "bind_addr", "client_addr", "performance", "retry_join_wan", "skip_leave_on_interrupt",
}

func diffKeys(haveData, wantData []byte) []string {
	want, _ := decodeObject(wantData) // our own rendering
	have, err := decodeObject(haveData)
	if err != nil {
		return []string{fmt.Sprintf("%s: %v", ourFile, err)}
	}
	all := maps.Clone(want)
	maps.Copy(all, have)

	var diff []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		h, w := have[key], want[key]
		switch {
		case reflect.DeepEqual(h, w):
		case slices.Contains(toldKeys, key):
			diff = append(diff, fmt.Sprintf("%s: %s is %s, not %s", ourFile, key, show(h), show(w)))
		case h == nil:
			diff = append(diff, fmt.Sprintf("%s: %s is missing", ourFile, key))
		case w == nil:
			diff = append(diff, fmt.Sprintf("%s: %s is not one of ours", ourFile, key))
		default:
			diff = append(diff, fmt.Sprintf("%s: %s differs", ourFile, key))
		}
	}
	return diff
}

func show(v any) string {
	if v == nil {
		return "absent"
	}
	data, _ := json.Marshal(v) // it came from JSON
	return string(data)
}

// file is one of those that Consul reads.
type file struct {
	name    string
	content []byte
}

// readConfig reads the files that Consul reads, in the order in which it does.
func readConfig(p *platform.Platform) ([]file, error) {
	entries, err := os.ReadDir(p.Path(platform.ConsulConfigDir))
	if err != nil {
		return nil, err
	}
	var all []file
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		name := p.Path(platform.ConsulConfigDir, e.Name())
		content, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		all = append(all, file{name, content})
	}
	return all, nil
}

// mergedConfig is what Consul makes of its folder: a later file wins, key by
// key, and objects are merged one level deep.
func mergedConfig(p *platform.Platform) (map[string]any, error) {
	all, err := readConfig(p)
	if err != nil {
		return nil, fmt.Errorf("consul: read the configuration: %w", err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("consul: no *.json in %s: is Consul's package installed?", p.Path(platform.ConsulConfigDir))
	}

	merged := map[string]any{}
	for _, f := range all {
		object, err := decodeObject(f.content)
		if err != nil {
			return nil, fmt.Errorf("consul: %s: %w", f.name, err)
		}
		for key, value := range object {
			had, isObject := merged[key].(map[string]any)
			if more, ok := value.(map[string]any); ok && isObject {
				maps.Copy(had, more)
				continue
			}
			merged[key] = value
		}
	}
	return merged, nil
}

// decodeObject decodes exactly one JSON object, numbers as they are written.
func decodeObject(data []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var object map[string]any
	if err := d.Decode(&object); err != nil {
		// Not wrapped: the decoder may quote what it read.
		return nil, fmt.Errorf("not a JSON object (near byte %d); Consul would not start on it", d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("text after the JSON object; Consul would not start on it")
	}
	if object == nil {
		return nil, errors.New("null instead of a JSON object")
	}
	return object, nil
}
