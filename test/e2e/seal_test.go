package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
)

// TestSeal seals a machine, puts one thing after the other back that a bake may
// leave behind, and expects the proofs to find each.
func TestSeal(t *testing.T) {
	needsLab(t)
	t.Parallel()
	m := unsealed(t)
	run := func(t *testing.T, script string) string {
		t.Helper()
		out, err := m.Run(t.Context(), "sh", "-ec", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	// What each operation found, by its name.
	sealed := func(t *testing.T) map[string][]string {
		t.Helper()
		run(t, "xivo-firstboot seal --allow-configured; xivo-firstboot seal --last")
		var manifest manifest.Manifest
		if err := json.Unmarshal([]byte(run(t, "cat /var/lib/xivo-firstboot/seal.json")), &manifest); err != nil {
			t.Fatal(err)
		}
		found := map[string][]string{}
		for _, op := range manifest.Operations {
			if len(op.Removed) > 0 && op.Earlier == nil {
				found[op.Name] = op.Removed
			}
		}
		return found
	}

	// The lab's seed is mounted where cloud-init's state is. An export is there, of a
	// seal that failed.
	run(t, `umount /var/lib/cloud/seed/nocloud
install -d -m 700 /var/lib/xivo-firstboot; echo '{"format": 1, "entries": []}' >/var/lib/xivo-firstboot/kv.json`)
	first := sealed(t)
	for _, op := range []string{"kv-export", "uuid-database", "consul-state", "certificate", "ssh-host-keys", "kv-tokens", "postgres-rows", "postgres-wal"} {
		if len(first[op]) == 0 {
			t.Errorf("the first seal found nothing to do for %s, so this machine proves nothing", op)
		}
	}

	if kv := run(t, "cat /var/lib/xivo-firstboot/kv.json"); !strings.Contains(kv, `"key"`) {
		t.Errorf("the image has the export of the seal that failed: %s", kv)
	}

	t.Run("sealing twice leaves the same machine", func(t *testing.T) {
		// Not what PostgreSQL and RabbitMQ write whenever they run, nor the lock and the
		// manifest, which tell who sealed last, and when.
		const files = `find /etc /root /home /usr/local /var -xdev ! -type d \
! -path '/var/lib/postgresql/*' ! -path '/var/log/postgresql/*' ! -path '/var/lib/rabbitmq/mnesia/*' ! -path '/var/log/rabbitmq/*' ! -path /var/lib/xivo-firstboot/seal.json ! -path /var/lib/xivo-firstboot/lock \
-printf '%m %u:%g %p %l ' \( -type f -exec sha256sum --zero {} \; -o -true \) -printf '\n' | tr -d '\0' | sort`
		before := strings.Split(run(t, files), "\n")
		sealed(t)
		if diff := cmp.Diff(before, strings.Split(run(t, files), "\n")); diff != "" {
			t.Errorf("files that the second seal changed (-before +after):\n%s", diff)
		}
	})

	dirt := []struct {
		name    string
		make    string
		finds   string // the operation whose proof it is
		telling string
	}{
		{"an SSH key that the build left", `install -d -m 700 /root/.ssh; echo ssh-ed25519 AAAA build >/root/.ssh/authorized_keys`,
			"build-ssh-key", "/root/.ssh/authorized_keys"},
		{"SSH host keys", `ssh-keygen -A`,
			"ssh-host-keys", "/etc/ssh/ssh_host_ed25519_key"},
		{"a stale raft", `install -d -o consul -g consul /var/lib/consul/raft; echo old >/var/lib/consul/raft/raft.db`,
			"consul-state", "raft"},
		{"a keyring of another mesh", `install -d -o consul -g consul /var/lib/consul/serf; echo '[]' >/var/lib/consul/serf/remote.keyring`,
			"consul-state", "serf"},
		{"a directory source of a mesh", `sql "INSERT INTO directories (uri, dirtype, name, description) VALUES ('https://10.0.0.9:9486', 'xivo', 'xivomesh0123456789ab', '')"`,
			"directory-rows", "accounts of a mesh (2)"},
		{"an account of a mesh", `sql "INSERT INTO accesswebservice (name, login, passwd) VALUES ('xivo-mesh-012345', 'xivo-mesh-012345', 'x')"`,
			"directory-rows", "accounts of a mesh (2)"},
		{"the old UUID in the database", `sql "UPDATE infos SET uuid = '$old'"`,
			"uuid-database", ""},
		{"the old UUID in profile.d", `echo "export XIVO_UUID=$old" >/etc/profile.d/xivo_uuid.sh`,
			"uuid-files", "/etc/profile.d/xivo_uuid.sh"},
		{"the old UUID in system.conf", `sed -i "s/XIVO_UUID=[0-9a-f-]*/XIVO_UUID=$old/" /etc/systemd/system.conf; grep -q $old /etc/systemd/system.conf`,
			"uuid-files", "/etc/systemd/system.conf"},
		{"the old UUID in /etc/default/xivo", `echo "export XIVO_UUID=$old" >>/etc/default/xivo`,
			"uuid-files", "/etc/default/xivo"},
		{"the old UUID in the service manager", `systemctl set-environment XIVO_UUID=$old`,
			"uuid-manager", "XIVO_UUID"},
		{"a machine id of D-Bus", `install -d /var/lib/dbus; rm -f /var/lib/dbus/machine-id; cat /proc/sys/kernel/random/uuid | tr -d - >/var/lib/dbus/machine-id`,
			"machine-id", "/var/lib/dbus/machine-id"},
		{"Consul's mesh configuration", `echo '{}' >/etc/consul/xivo/interconnection.json`,
			"consul-config", "/etc/consul/xivo/interconnection.json"},
		{"a machine id", `cat /proc/sys/kernel/random/uuid | tr -d - >/etc/machine-id`,
			"machine-id", "/etc/machine-id"},
		{"an upstream in the broker", `curl -sfu guest:guest -X PUT -H 'Content-Type: application/json' -d '{"value": {"uri": "amqp://10.0.0.9"}}' http://127.0.0.1:15672/api/parameters/federation-upstream/%2f/xivomesh0123456789ab`,
			"rabbitmq-federation", "upstreams (1)"},
		{"a cluster name in the broker", `curl -sfu guest:guest -X PUT -H 'Content-Type: application/json' -d '{"name": "original"}' http://127.0.0.1:15672/api/cluster-name`,
			"rabbitmq-name", "cluster name"},
		{"a token that opens the original's Consul", `sed -i 's/"acl_master_token": "[^"]*"/"acl_master_token": "original"/' /etc/consul/xivo/config.json`,
			"consul-token", "config.json"},
		{"the Erlang cookie of a broker that ran", `test -e /var/lib/rabbitmq/.erlang.cookie`,
			"erlang-cookie", "/var/lib/rabbitmq/.erlang.cookie"},
		{"a TLS key", `echo key >/usr/share/xivo-certs/server.key`,
			"certificate", "/usr/share/xivo-certs/server.key"},
		{"a user data of the build", `install -d /var/lib/cloud/instance; echo x >/var/lib/cloud/instance/user-data.txt`,
			"cloud-init", "/var/lib/cloud/instance"},
		{"the key of one of XiVO's own accounts", `sql "UPDATE accesswebservice SET passwd = 'original' WHERE login = 'xivo-agid'"`,
			"service-keys", "xivo-agid"},
		{"xivo-ctid's mesh configuration", `echo original >/etc/xivo-ctid/conf.d/interconnection.yml`,
			"ctid-config", "/etc/xivo-ctid/conf.d/interconnection.yml"},
		{"an interface's name for a hardware address", `install -d /etc/udev/rules.d; echo original >/etc/udev/rules.d/70-persistent-net.rules`,
			"udev-net-rules", "/etc/udev/rules.d/70-persistent-net.rules"},
		{"a DHCP lease", `install -d /var/lib/dhcp; echo lease >/var/lib/dhcp/dhclient.eth0.leases`,
			"dhcp-leases", "/var/lib/dhcp/dhclient.eth0.leases"},
		{"a random seed", `echo seed >/var/lib/systemd/random-seed`,
			"random-seed", "/var/lib/systemd/random-seed"},
		{"a package that was downloaded", `echo deb >/var/cache/apt/archives/original.deb`,
			"apt-cache", "/var/cache/apt/archives/original.deb"},
		{"callers in Asterisk's log", `install -d /var/log/asterisk/cdr-csv; echo 0033123456789 >/var/log/asterisk/cdr-csv/Master.csv`,
			"logs", "/var/log/asterisk/cdr-csv/Master.csv"},
		{"a log that was rotated", `echo 0033123456789 >/var/log/kern.log.11`,
			"logs", "/var/log/kern.log.11"},
		{"the KV, of an export that was killed", `install -d /var/lib/xivo-firstboot/consul-at-rest/data/raft`,
			"our-state", "/var/lib/xivo-firstboot/consul-at-rest"},
		{"a file that a provisioner left", `echo original >/var/tmp/original`,
			"temporary-files", "temporary files"},
		{"a token with which somebody is logged in", `sed -i 's,"entries": \[,&{"key": "xivo/xivo-auth/tokens/original/token"\, "value": ""\, "flags": 0}\,,' /var/lib/xivo-firstboot/kv.json; grep -q tokens/original /var/lib/xivo-firstboot/kv.json`,
			"kv-tokens", "xivo/xivo-auth/ (1)"},
		{"a shell history", `echo secret >/root/.bash_history`,
			"shell-history", "/root/.bash_history"},
	}
	script := `old=11111111-2222-4333-8444-555555555555
sql() { PGPASSWORD=proformatique psql -q -h localhost -U asterisk -v ON_ERROR_STOP=1 -c "$1" asterisk; }
systemctl start postgresql rabbitmq-server
until sql "SELECT 1" >/dev/null 2>&1; do :; done
`
	for _, d := range dirt {
		script += d.make + "\n"
	}
	run(t, script)
	found := sealed(t)
	for _, d := range dirt {
		t.Run("finds "+d.name, func(t *testing.T) {
			if got := strings.Join(found[d.finds], "\n"); got == "" || !strings.Contains(got, d.telling) {
				t.Errorf("%s found %q, want it to name %q", d.finds, got, d.telling)
			}
		})
	}

	// The manifest goes home, and stays in the image.
	t.Run("tells the names of nobody", func(t *testing.T) {
		for operation, lines := range found {
			for _, name := range []string{"xivomesh0123456789ab", "xivo-mesh-012345", "11111111-2222-4333-8444-555555555555", "10.0.0.9"} {
				if strings.Contains(strings.Join(lines, "\n"), name) {
					t.Errorf("%s names %s: %q", operation, name, lines)
				}
			}
		}
	})

	t.Run("what is disabled stays, and the manifest says so", func(t *testing.T) {
		run(t, `echo 0033123456789 >/var/log/kern.log.11; echo secret >/root/.bash_history
xivo-firstboot seal --allow-configured --disable logs
test -e /var/log/kern.log.11; ! test -e /root/.bash_history`)
		var manifest manifest.Manifest
		if err := json.Unmarshal([]byte(run(t, "cat /var/lib/xivo-firstboot/seal.json")), &manifest); err != nil {
			t.Fatal(err)
		}
		for _, op := range manifest.Operations {
			if op.Disabled != (op.Name == "logs") {
				t.Errorf("%s is disabled: %t", op.Name, op.Disabled)
			}
		}
	})

	t.Run("what cannot be taken out fails the seal", func(t *testing.T) {
		run(t, `echo key >/root/.ssh/authorized_keys; mount --bind /root/.ssh/authorized_keys /root/.ssh/authorized_keys`)
		out, err := m.Run(t.Context(), "xivo-firstboot", "seal", "--last")
		if err == nil || !strings.Contains(err.Error(), "authorized_keys") {
			t.Errorf("the seal ended with a key that it cannot remove: %v\n%s", err, out)
		}
	})
}
