package ctid_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const address = "10.0.0.1"

func server(t *testing.T, traits platform.Traits, files map[string]string) *platform.Platform {
	t.Helper()
	p := &platform.Platform{Root: t.TempDir(), Traits: traits}
	if err := os.MkdirAll(p.Path(platform.CtidConfigDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(p.Path(platform.CtidConfigDir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

type m = map[string]any

func parsed(t *testing.T, file string) (got m) {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	return got
}

type resource interface {
	Diff(context.Context) ([]string, error)
	Apply(context.Context) error
}

// becomes applies a resource that differs, and wants it as it should be after.
func becomes(t *testing.T, r resource) []string {
	t.Helper()
	diff, err := r.Diff(t.Context())
	if err != nil || len(diff) == 0 {
		t.Fatalf("before apply: %v, %v", diff, err)
	}
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := r.Diff(t.Context()); err != nil || left != nil {
		t.Fatalf("after apply: %v, %v", left, err)
	}
	return diff
}

func TestConfigFile(t *testing.T) {
	address := m{"advertise_address": address}
	listens := m{"http": m{"listen": "0.0.0.0"}}
	tests := []struct {
		name   string
		traits platform.Traits
		ctid   m
		others m
	}{
		{"with the check of old versions", platform.Traits{CtidCheckURL: true, CtidAsksPeers: true},
			m{"rest_api": listens, "service_discovery": m{"advertise_address": "10.0.0.1", "check_url": "http://10.0.0.1:9495/0.1/infos"}}, nil},
		{"without it", platform.Traits{CtidAsksPeers: true},
			m{"rest_api": listens, "service_discovery": address}, nil},
		{"the other daemons are looked up too", platform.Traits{CtidAsksPeers: true, PresenceCredentials: true},
			m{"rest_api": listens, "service_discovery": address}, m{"service_discovery": address}},
		{"no peer asks xivo-ctid: it stays on loopback", platform.Traits{PresenceCredentials: true},
			m{"service_discovery": address}, m{"service_discovery": address}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := server(t, tt.traits, nil)
			others := []string{"/etc/xivo-ctid-ng/conf.d", "/etc/xivo-confd/conf.d", "/etc/wazo-auth/conf.d"}
			for _, dir := range append(others, "/etc/postgresql/conf.d") {
				if err := os.MkdirAll(p.Path(dir), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			becomes(t, ctid.ConfigFile(p, "10.0.0.1"))
			if d := cmp.Diff(tt.ctid, parsed(t, p.Path(platform.CtidConfigDir, "interconnection.yml"))); d != "" {
				t.Errorf("xivo-ctid's (-want +got):\n%s", d)
			}
			for _, dir := range others {
				file := p.Path(dir, "interconnection.yml")
				if tt.others == nil {
					if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("%s: %v", file, err)
					}
					continue
				}
				if d := cmp.Diff(tt.others, parsed(t, file)); d != "" {
					t.Errorf("%s (-want +got):\n%s", file, d)
				}
			}
			if left, _ := os.ReadDir(p.Path("/etc/postgresql/conf.d")); len(left) > 0 {
				t.Errorf("written where no daemon of XiVO reads: %v", left)
			}
			if winners, err := ctid.Overridden(p, "10.0.0.1"); err != nil || winners != nil {
				t.Errorf("overridden by %v, %v", winners, err)
			}
		})
	}
}

func TestCredentials(t *testing.T) {
	p := server(t, platform.Traits{PresenceCredentials: true}, nil)
	a := ctid.Peer{Name: "xivomesha", UUID: uuid.MustParse("607796fc-24e2-4e26-8009-cbb48a205512")}
	b := ctid.Peer{Name: "xivomeshb", UUID: uuid.MustParse("11111111-2222-4333-8444-555555555555")}
	of := func(peers ...ctid.Peer) resource {
		return ctid.Credentials(p, address, "xivo-mesh-0a1b2c", `a "quoted" $ecret`, peers)
	}
	if diff, err := of(a).Diff(t.Context()); err != nil || diff != nil {
		t.Fatalf("without xivo-ctid-ng: %v, %v", diff, err)
	}
	for _, dir := range []string{"/etc/xivo-ctid-ng/conf.d", filepath.Dir(platform.CertificateKey)} {
		if err := os.MkdirAll(p.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(p.Path(platform.CertificateKey), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(p.Path(platform.CertificateKey), 0, 33); err != nil {
			t.Fatal(err)
		}
	}
	file := p.Path("/etc/xivo-ctid-ng/conf.d/interconnection.yml")
	entry := func(p ctid.Peer) m {
		return m{"xivo_uuid": p.UUID.String(), "service_id": "xivo-mesh-0a1b2c", "service_key": `a "quoted" $ecret`}
	}
	discovery := m{"advertise_address": address}
	for _, c := range []struct {
		name  string
		peers []ctid.Peer
		want  m
	}{
		{"an entry for each peer", []ctid.Peer{b, a}, m{"service_discovery": discovery, "remote_credentials": m{"xivomesha": entry(a), "xivomeshb": entry(b)}}},
		{"one is gone", []ctid.Peer{a}, m{"service_discovery": discovery, "remote_credentials": m{"xivomesha": entry(a)}}},
		{"nobody is left", nil, m{"service_discovery": discovery}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if said := strings.Join(becomes(t, of(c.peers...)), "\n"); strings.Contains(said, "$ecret") {
				t.Errorf("the diff tells the password: %s", said)
			}
			if d := cmp.Diff(c.want, parsed(t, file)); d != "" {
				t.Errorf("file (-want +got):\n%s", d)
			}
		})
	}
	t.Run("read by those who may read the TLS key, and nobody else", func(t *testing.T) {
		if err := os.Chmod(file, 0o644); err != nil {
			t.Fatal(err)
		}
		becomes(t, of())
		st, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if gid := st.Sys().(*syscall.Stat_t).Gid; st.Mode().Perm() != 0o640 || os.Getuid() == 0 && gid != 33 {
			t.Errorf("mode %v, group %d", st.Mode().Perm(), gid)
		}
	})
	t.Run("with the address that is right without them, too", func(t *testing.T) {
		own := ctid.ConfigFile(p, address)
		becomes(t, own)
		becomes(t, of(a))
		if diff, err := own.Diff(t.Context()); err != nil || diff != nil {
			t.Errorf("%v, %v", diff, err)
		}
		if diff, err := ctid.ConfigFile(p, "192.0.2.99").Diff(t.Context()); err != nil || len(diff) == 0 {
			t.Errorf("another address is not noticed: %v", err)
		}
	})
	t.Run("which stay when an upgrade brings another daemon", func(t *testing.T) {
		if err := os.MkdirAll(p.Path("/etc/wazo-auth/conf.d"), 0o755); err != nil {
			t.Fatal(err)
		}
		want := []string{"/etc/wazo-auth/conf.d/interconnection.yml is missing"}
		if d := cmp.Diff(want, becomes(t, ctid.ConfigFile(p, address))); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		if diff, err := of(a).Diff(t.Context()); err != nil || diff != nil {
			t.Errorf("%v, %v", diff, err)
		}
	})
	t.Run("in the order of the peers or another", func(t *testing.T) {
		becomes(t, of(a, b))
		if diff, err := of(b, a).Diff(t.Context()); err != nil || diff != nil {
			t.Errorf("%v, %v", diff, err)
		}
	})
}

func TestOverridden(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"a file that comes first wins", map[string]string{"a.yml": "service_discovery: {advertise_address: 10.9.9.9}"}, []string{"a.yml"}},
		{"so does one that listens on loopback", map[string]string{"00.yml": "rest_api: {http: {listen: 127.0.0.1}}"}, []string{"00.yml"}},
		{"so does one that keeps it out of Consul", map[string]string{"00-site.yml": "service_discovery: {enabled: false}"}, []string{"00-site.yml"}},
		{"so does one that listens on another port", map[string]string{"00-site.yml": "rest_api: {http: {port: 9999}}"}, []string{"00-site.yml"}},
		{"a part of it is enough", map[string]string{"00-site.yml": "service_discovery: {advertise_address: 10.0.0.1, enabled: true}\nrest_api: {http: {listen: 127.0.0.1}}"}, []string{"00-site.yml"}},
		{"two of them are both named", map[string]string{"00-site.yml": "service_discovery: {advertise_address: auto}", "10-other.yml": "rest_api: {http: {listen: 127.0.0.1}}"}, []string{"00-site.yml", "10-other.yml"}},
		{"a value in place of a map wins", map[string]string{"00.yml": "rest_api: off"}, []string{"00.yml"}},
		{"the same value does no harm", map[string]string{"a.yml": "service_discovery: {advertise_address: 10.0.0.1}"}, nil},
		{"other keys do no harm", map[string]string{"050-xivo-consul-config.yml": "consul: {host: localhost}"}, nil},
		{"a later file loses", map[string]string{"z.yml": "service_discovery: {advertise_address: 10.9.9.9}"}, nil},
		{"hidden, other and broken files are not read", map[string]string{
			".a.yml":   "service_discovery: {advertise_address: 10.9.9.9}",
			"a.yml.sv": "service_discovery: {advertise_address: 10.9.9.9}",
			"b.yml":    "\tservice_discovery: {advertise_address: 10.9.9.9",
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ctid.Overridden(server(t, platform.Traits{CtidAsksPeers: true}, tt.files), address)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("winners (-want +got):\n%s", d)
			}
		})
	}
}
