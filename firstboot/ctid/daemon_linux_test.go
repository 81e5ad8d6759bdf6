package ctid_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// XiVO's packages make 050-xivo-consul-*.yml links to files of Consul's user.
func TestOverriddenFollowsTheLinkOfThePackageAndNoneOfConsulsUser(t *testing.T) {
	const token = platform.ConsulDataDir + "/default_xivo_consul_token.yml"
	for _, c := range []struct {
		name  string
		plant func(file string) error
		told  string // of the error; "" where there is none
	}{
		{"a file", func(file string) error {
			return os.WriteFile(file, []byte("service_discovery: {advertise_address: 10.9.9.9}"), 0o640)
		}, ""},
		{"a FIFO", func(file string) error { return syscall.Mkfifo(file, 0o666) }, "FIFO"},
		{"a link to root's file", func(file string) error { return os.Symlink("/etc/shadow", file) }, "symbolic link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := server(t, platform.Traits{}, nil)
			file := p.Path(token)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.plant(file); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(file, p.Path(platform.CtidConfigDir, "050-xivo-consul-token.yml")); err != nil {
				t.Fatal(err)
			}
			type result struct {
				winners []string
				err     error
			}
			done := make(chan result, 1)
			go func() {
				winners, err := ctid.Overridden(p, address)
				done <- result{winners, err}
			}()
			select {
			case got := <-done:
				if c.told == "" {
					if d := cmp.Diff([]string{"050-xivo-consul-token.yml"}, got.winners); d != "" || got.err != nil {
						t.Errorf("%s, %v", d, got.err)
					}
				} else if got.err == nil || !strings.Contains(got.err.Error(), c.told) {
					t.Errorf("%v", got.err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it hangs")
			}
		})
	}
}

// As wide as that of the file which is replaced was, with a secret in it.
func TestALinkInPlaceOfAConfigurationIsRefused(t *testing.T) {
	p := server(t, platform.Traits{PresenceCredentials: true}, nil)
	file := p.Path("/etc/xivo-ctid-ng/conf.d/interconnection.yml")
	for _, dir := range []string{filepath.Dir(file), p.Path(filepath.Dir(platform.CertificateKey))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	secret := p.Path("/secret")
	for _, name := range []string{secret, p.Path(platform.CertificateKey)} {
		if err := os.WriteFile(name, []byte("root's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(secret, file); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]resource{
		"address":     ctid.ConfigFile(p, address),
		"credentials": ctid.Credentials(p, address, "account", "password", nil),
	} {
		_, err := r.Diff(t.Context())
		for _, err := range []error{err, r.Apply(t.Context())} {
			if err == nil || !strings.Contains(err.Error(), "symbolic link") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	raw, err := os.ReadFile(secret)
	if st, statErr := os.Stat(secret); err != nil || statErr != nil || string(raw) != "root's" || st.Mode().Perm() != 0o600 {
		t.Errorf("%q, %v, %v", raw, st, err)
	}
}
