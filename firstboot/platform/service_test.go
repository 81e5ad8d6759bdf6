package platform_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// on is the server of a version.
func on(t *testing.T, version string) *platform.Platform {
	t.Helper()
	root := t.TempDir()
	file := filepath.Join(root, platform.VersionFile)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(version+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := platform.Detect(root)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

var roles = []platform.Role{
	platform.Consul, platform.Broker, platform.Monit, platform.Asterisk, platform.Agentd, platform.Agid, platform.Amid,
	platform.Auth, platform.CallLog, platform.Confd, platform.Confgend, platform.Ctid, platform.CtidNG, platform.Dird,
	platform.Phoned, platform.Dxtora, platform.Provd, platform.Sysconfd, platform.Websocketd, platform.AdminUI,
	platform.Plugind, platform.Webhookd, platform.MongooseIM,
}

// Each boundary has a row on both of its sides.
func TestServicesAreNamedAsTheirVersionNamesThem(t *testing.T) {
	const (
		auth, callLog, dird, ctidNG = platform.Auth, platform.CallLog, platform.Dird, platform.CtidNG
	)
	type names = map[platform.Role]string
	for _, c := range []struct {
		version string
		new     names // that differ from the first ones
	}{
		{"15.19", names{}},
		{"16.16", names{}},
		{"17.13", names{}},
		{"17.14", names{auth: "wazo-auth"}},
		{"17.15", names{auth: "wazo-auth", callLog: "wazo-call-logd"}},
		{"18.03", names{auth: "wazo-auth", callLog: "wazo-call-logd"}},
		{"18.04", names{auth: "wazo-auth", callLog: "wazo-call-logd"}},
		{"18.05", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird"}},
		{"19.06", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird"}},
		{"19.07", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld"}},
		{"19.08", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld"}},
		{"19.09", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld",
			platform.Agentd: "wazo-agentd", platform.Confd: "wazo-confd"}},
		{"19.11", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld",
			platform.Agentd: "wazo-agentd", platform.Confd: "wazo-confd"}},
		{"19.12", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld",
			platform.Agentd: "wazo-agentd", platform.Confd: "wazo-confd", platform.Agid: "wazo-agid", platform.Provd: "wazo-provd"}},
		{"19.13", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld",
			platform.Agentd: "wazo-agentd", platform.Confd: "wazo-confd", platform.Agid: "wazo-agid", platform.Provd: "wazo-provd",
			platform.Amid: "wazo-amid"}},
		{"19.14", names{auth: "wazo-auth", callLog: "wazo-call-logd", dird: "wazo-dird", ctidNG: "wazo-calld",
			platform.Agentd: "wazo-agentd", platform.Confd: "wazo-confd", platform.Agid: "wazo-agid", platform.Provd: "wazo-provd",
			platform.Amid: "wazo-amid", platform.Confgend: "wazo-confgend"}},
		{"2017.11.04", names{}}, // xivo.solutions
		{"2018.05", names{}},
	} {
		t.Run(c.version, func(t *testing.T) {
			p := on(t, c.version)
			got := names{}
			for _, r := range roles {
				name := p.Service(r)
				if name != string(r) {
					got[r] = name
				}
				broker := r == platform.Consul || r == platform.Broker || r == platform.Monit
				if listed := slices.Contains(platform.Daemons(), name); listed == broker {
					t.Errorf("%s is among the daemons of all versions: %t", name, listed)
				}
			}
			if diff := cmp.Diff(c.new, got); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWithoutAVersionServicesHaveTheirFirstNames(t *testing.T) {
	if got := (&platform.Platform{}).Service(platform.Ctid); got != "xivo-ctid" {
		t.Errorf("ctid is called %q", got)
	}
}
