package recipe

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
)

// questions are asked in a laid-out root whose PostgreSQL runs. Each answer is
// one line, the same for every machine of a version.
var questions = []struct{ name, script string }{
	{"XIVO_UUID of logins", `. /etc/profile.d/xivo_uuid.sh && same "$XIVO_UUID"`},
	{"XIVO_UUID of daemons", `same "$(sed -n 's/^DefaultEnvironment="XIVO_UUID=\(.*\)"$/\1/p' /etc/systemd/system.conf)"`},
	{"XIVO_UUID of init scripts", `same "$(sed -n 's/^export XIVO_UUID=//p' /etc/default/xivo)"`},
	{"marker of the wizard", `[ -e /var/lib/xivo/configured ] && echo there`},
	{"general.configured", `sql "SELECT configured FROM general"`},
	{"accesswebservice", `columns accesswebservice obj acl uuid`},
	{"ctidirectories", `columns ctidirectories uri directory_id`},
	{"infos.wazo_version", `sql "SELECT wazo_version FROM infos"`},
	{"a service's key", `[ "$(sed -n 's/^service_key: //p' /var/lib/xivo-auth-keys/xivo-agid-key.yml)" = "$(sql "SELECT passwd FROM accesswebservice WHERE login = 'xivo-agid'")" ] && echo account || echo file`},
	{"registration of xivo-ctid", `sed -n 's/^  \(check_url\|ttl_interval\):.*/\1/p' /etc/xivo-ctid/config.yml`},
	{"KV", `[ -e /var/lib/consul/raft ] && echo there`},
	{"anonymous reads", `grep -q anonymous /etc/systemd/system/consul.service && [ -x /usr/bin/consul-customize-anonymous-token ] && echo yes`},
	{"name of xivo-auth", `cd /etc && ls -d *-auth`},
	{"command", `cd /usr/bin && ls ????-service`},
}

func TestXiVOIsLaidOutAsItsVersionDoes(t *testing.T) {
	if os.Getenv("XIVO_LAB") == "" {
		t.Skip("lays machines out: run make test")
	}
	maker, err := New(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	of := map[string]string{
		"15.20": "-|-|-|there|-|obj|uri|-|file|check_url|there|-|xivo-auth|xivo-service",
		"16.03": "UUID|UUID|UUID|there|-|acl|uri|-|account|ttl_interval|there|-|xivo-auth|xivo-service",
		"16.12": "UUID|UUID|UUID|-|t|acl|uri|-|account|ttl_interval|-|-|xivo-auth|xivo-service",
		"16.13": "UUID|UUID|UUID|-|t|acl|directory_id|-|account|ttl_interval|-|-|xivo-auth|xivo-service",
		"16.16": "UUID|UUID|UUID|-|t|acl|directory_id|-|account|ttl_interval|-|yes|xivo-auth|xivo-service",
		"17.17": "UUID|UUID|UUID|-|t|acl uuid|directory_id|17.17|account|ttl_interval|-|yes|wazo-auth|wazo-service xivo-service",
	}
	for _, version := range schema.Eras {
		t.Run(version, func(t *testing.T) {
			debian, layer, err := maker.XiVO(t.Context(), version)
			if err != nil {
				t.Fatal(err)
			}
			p, err := platform.Detect(layer)
			if err != nil || p.Version.String() != version {
				t.Fatalf("it is taken for XiVO %s: %v", p.Version, err)
			}

			wanted := strings.Split(of[version], "|")
			want := map[string]string{}
			for i, q := range questions {
				want[q.name] = wanted[i]
			}
			if diff := cmp.Diff(want, ask(t, debian, layer)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// ask runs the questions on a copy of a root. A command that fails, or says
// nothing, answers "-".
func ask(t *testing.T, debian, layer string) map[string]string {
	t.Helper()
	script := `
cluster=$(pg_lsclusters --no-header | awk '{print $1, $2}')
pg_ctlcluster $cluster start
sql() { PGPASSWORD=proformatique psql --no-align --tuples-only --host=localhost --username=asterisk --command="$1" asterisk 2>/dev/null; }
columns() { for c in "${@:2}"; do sql "SELECT column_name FROM information_schema.columns WHERE table_name = '$1' AND column_name = '$c'"; done; }
same() { [ "$1" = "$(sql 'SELECT uuid FROM infos')" ] && echo UUID; }
`
	for _, q := range questions {
		script += "answer=$( (" + q.script + ") 2>/dev/null | paste -sd ' ')\nprintf '%s=%s\\n' " + shell.Quote(q.name) + " \"${answer:--}\"\n"
	}
	script += "pg_ctlcluster $cluster stop\n"

	dir := t.TempDir()
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const enter = `cd "$3" && mount -t overlay -o "lowerdir=$2:$1,upperdir=upper,workdir=work" overlay root
ip link set lo up
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs -o mode=755 tmpfs root/run
install -d -o "$(chroot root id -u postgres)" -m 2775 root/run/postgresql
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 bash -c "$4"`
	out, err := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child",
		"bash", "-euc", enter, "enter", debian, layer, dir, script).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	answers := map[string]string{}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		if name, answer, ok := strings.Cut(lines.Text(), "="); ok {
			answers[name] = answer
		}
	}
	return answers
}
