package sealing_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestWhatIsThisMachinesOwn(t *testing.T) {
	const (
		machineID = "2b8f1c0e6a0a4f0e9b573f6f6e0c8a11"
		token     = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
		cookie    = "NKQXPLDWRMTZUVHYBSGA"
		agid      = "key-of-agid-0123456789"
		ctid      = "key-of-ctid-0123456789"
		database  = "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6e"
	)
	db := nodetest.Connect(t, server.Postgres(t, schema.SQL("16.03")))
	if _, err := db.Exec(t.Context(), "UPDATE infos SET uuid = $1", database); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(t.Context(), `UPDATE accesswebservice SET passwd = $1 WHERE login = 'xivo-agid'`, agid); err != nil {
		t.Fatal(err)
	}
	n := nodetest.Server(t, "16.03", db)
	n.Journal, n.Document.Config = nil, nil
	n.Platform.Init.(*nodetest.Manager).Down = map[string]bool{"consul": true}
	place(t, n, map[string]string{
		"/etc/machine-id": machineID + "\n", "/var/lib/rabbitmq/.erlang.cookie": cookie,
		platform.ConsulDataDir + "/master_token": token, "/etc/ssh/ssh_host_rsa_key": "an SSH key of this host",
		"/var/lib/xivo-auth-keys/xivo-ctid-key.yml": "service_id: xivo-ctid\nservice_key: " + ctid + "\n",
	})
	if err := errors.Join(os.MkdirAll(n.Platform.Path("/var/lib/dbus"), 0o755), os.Symlink("/etc/machine-id", n.Platform.Path("/var/lib/dbus/machine-id"))); err != nil {
		t.Fatal(err)
	}
	values := func() string {
		t.Helper()
		v, err := sealing.Values(t.Context(), n)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := v.Encode()
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	have := values()
	for _, value := range []string{database, nodetest.OldUUID, machineID, token, cookie, agid, ctid, "an SSH key of this host"} {
		if !strings.Contains(have, value) {
			t.Errorf("%s is not among them", value)
		}
	}

	// What stands in a sealed image is nobody's.
	for _, sql := range []string{"UPDATE infos SET uuid = '00000000-0000-0000-0000-000000000000'", "UPDATE accesswebservice SET passwd = 'proformatique'"} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	place(t, n, map[string]string{
		"/etc/machine-id": "", "/var/lib/rabbitmq/.erlang.cookie": "", "/etc/ssh/ssh_host_rsa_key": "",
		platform.ConsulDataDir + "/master_token":    sealing.PlaceholderToken,
		"/var/lib/xivo-auth-keys/xivo-ctid-key.yml": "", nodetest.ProfileFile: "export XIVO_UUID=00000000-0000-0000-0000-000000000000\n",
		nodetest.ManagerFile: "", "/etc/default/xivo": "",
	})
	n.Platform.Init.(*nodetest.Manager).Env["XIVO_UUID"] = "00000000-0000-0000-0000-000000000000"
	if left := values(); strings.Contains(left, "value") && strings.Contains(left, `"name"`) {
		t.Errorf("of a sealed machine: %s", left)
	}
}

func TestValuesAreKeptBeforeAnythingIsTakenOut(t *testing.T) {
	db := nodetest.Connect(t, server.Postgres(t, schema.SQL("16.03")))
	n := nodetest.Server(t, "16.03", db)
	n.Journal, n.Document.Config = nil, nil
	underSystemd(t, n)
	var names []string
	o := sealing.Options{Enable: []string{"machine-id"}, KeepValues: func(v remains.Values) error {
		if id := nodetest.Read(t, n, "/etc/machine-id"); id == "" {
			t.Error("the machine id is gone already")
		}
		names = v.Names()
		return nil
	}}
	place(t, n, map[string]string{"/etc/machine-id": "2b8f1c0e6a0a4f0e9b573f6f6e0c8a11\n"})
	if _, err := sealing.Seal(t.Context(), n, o); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(names, "the machine id") {
		t.Errorf("kept: %q", names)
	}
	if id := nodetest.Read(t, n, "/etc/machine-id"); id != "" {
		t.Error("the machine id is still there")
	}
}

func TestNoLiveTokenIsInTheImage(t *testing.T) {
	n := aServer(t, map[string]string{kvexport.File: `{"format": 1, "entries": [
		{"key": "xivo/xivo-auth/tokens/0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a/token", "value": "", "flags": 0},
		{"key": "xivo/private/alice/contacts", "value": "", "flags": 0}]}`})
	found, err := run(t, n, "kv-tokens")
	if diff := cmp.Diff([]string{"the export has entries below xivo/xivo-auth/ (1)"}, found); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if kv := nodetest.Read(t, n, kvexport.File); strings.Contains(kv, "0c1b5e1e") || !strings.Contains(kv, "xivo/private/alice/contacts") {
		t.Errorf("the export: %s", kv)
	}
	// A machine of which no KV was exported.
	if found, err := run(t, aServer(t, nil), "kv-tokens"); found != nil || err != nil {
		t.Errorf("%q, %v", found, err)
	}
}
