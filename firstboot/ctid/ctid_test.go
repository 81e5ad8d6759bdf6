package ctid_test

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func TestConfigFile(t *testing.T) {
	type m = map[string]any
	tests := []struct {
		name   string
		traits platform.Traits
		want   m
	}{
		{"with the check of old versions", platform.Traits{CtidCheckURL: true}, m{
			"rest_api":          m{"http": m{"listen": "0.0.0.0"}},
			"service_discovery": m{"advertise_address": address, "check_url": "http://10.0.0.1:9495/0.1/infos"},
		}},
		{"without it", platform.Traits{}, m{
			"rest_api":          m{"http": m{"listen": "0.0.0.0"}},
			"service_discovery": m{"advertise_address": address},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := server(t, tt.traits, nil)
			c := ctid.ConfigFile(p, address)
			if diff, err := c.Diff(t.Context()); err != nil || len(diff) != 1 {
				t.Fatalf("before apply: %v, %v", diff, err)
			}
			if err := c.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff, err := c.Diff(t.Context()); err != nil || diff != nil {
				t.Fatalf("after apply: %v, %v", diff, err)
			}
			raw, err := os.ReadFile(p.Path(platform.CtidConfigDir, "interconnection.yml"))
			if err != nil {
				t.Fatal(err)
			}
			var got m
			if err := yaml.Unmarshal(raw, &got); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("file (-want +got):\n%s", d)
			}
			if winners, err := ctid.Overridden(p, address); err != nil || winners != nil {
				t.Errorf("overridden by %v, %v", winners, err)
			}
		})
	}
}

func TestOverridden(t *testing.T) {
	tests := []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"a file that comes first wins", map[string]string{"a.yml": "service_discovery: {advertise_address: 10.9.9.9}"}, []string{"a.yml"}},
		{"so does one that listens on loopback", map[string]string{"00.yml": "rest_api: {http: {listen: 127.0.0.1}}"}, []string{"00.yml"}},
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
			got, err := ctid.Overridden(server(t, platform.Traits{}, tt.files), address)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("winners (-want +got):\n%s", d)
			}
		})
	}
}
