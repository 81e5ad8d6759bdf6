package sealing_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/sealing"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

const journalFile = platform.StateDir + "/journal.json"

// A first boot compares the image with its manifest before it changes anything.
func TestManifestAtFirstBoot(t *testing.T) {
	change := func(t *testing.T, n *node.Node, change func(*manifest.Manifest)) {
		t.Helper()
		change(n.Seal.Manifest)
		if err := n.WriteState(node.ManifestFile, n.Seal.Manifest); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, n *node.Node, file func(path, content string))
		want   node.Action
		err    string // part of the error
		told   string // part of the log
	}{
		{
			name:   "the image is as it was sealed",
			change: func(*testing.T, *node.Node, func(string, string)) {},
			want:   node.TakeOn,
		}, {
			name: "the export of the KV was damaged: its data would be lost",
			change: func(_ *testing.T, _ *node.Node, file func(string, string)) {
				file(kvexport.File, "half of the ex")
			},
			want: node.TakeOn, err: "kv.json is not the export that the seal made",
		}, {
			name: "the export of the KV is gone",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				if err := os.Remove(n.Platform.Path(kvexport.File)); err != nil {
					t.Fatal(err)
				}
			},
			want: node.TakeOn, err: "the export of Consul's KV cannot be read",
		}, {
			name: "it was a node meanwhile, and cloud-init clean was run: the KV is in Consul",
			change: func(t *testing.T, n *node.Node, file func(string, string)) {
				if !n.BrokerSealed() {
					t.Error("its broker was sealed")
				}
				if err := os.Remove(n.Platform.Path(kvexport.File)); err != nil {
					t.Fatal(err)
				}
				file(platform.ConsulDataDir+"/raft/raft.db", "the state")
				if n.BrokerSealed() {
					t.Error("its broker is taken for a sealed one")
				}
			},
			want: node.TakeOn,
		}, {
			name: "the manifest was cut off",
			change: func(_ *testing.T, _ *node.Node, file func(string, string)) {
				file(node.ManifestFile, `{"format": 1, "op`)
			},
			want: node.TakeOn, err: "is damaged",
		}, {
			name:   "the manifest of a later release",
			change: func(_ *testing.T, _ *node.Node, file func(string, string)) { file(node.ManifestFile, `{"format": 2}`) },
			want:   node.TakeOn, err: "has format 2",
		}, {
			name: "XiVO was upgraded in the image",
			change: func(_ *testing.T, _ *node.Node, file func(string, string)) {
				file(platform.VersionFile, "16.16")
			},
			want: node.TakeOn, told: "sealed=16.03 now=16.16",
		}, {
			name: "a later provisioner changed one of our files",
			change: func(_ *testing.T, _ *node.Node, file func(string, string)) {
				file(cloudinit.BinaryPath, "another build")
			},
			want: node.TakeOn, told: "file=" + cloudinit.BinaryPath,
		}, {
			name: "the keys of the build were left",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				change(t, n, func(m *manifest.Manifest) { m.Operations = m.Operations[:1] })
			},
			want: node.TakeOn, told: "operation=build-ssh-key",
		}, {
			name: "what was deleted was left on the disk, on request",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				change(t, n, func(m *manifest.Manifest) {
					m.Operations[len(m.Operations)-1] = manifest.Operation{Name: "free-space", Disabled: true}
				})
			},
			want: node.TakeOn, told: "operation=free-space",
		}, {
			name: "the UUID was left in on request, so it is no sealed image",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				change(t, n, func(m *manifest.Manifest) { m.Operations[0].Disabled = true })
			},
			want: node.LeaveAlone,
		}, {
			name: "what proves that the UUID is out was skipped, so it is no sealed image",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				change(t, n, func(m *manifest.Manifest) { m.Operations[0].Skipped = "for a reason" })
			},
			want: node.LeaveAlone,
		}, {
			name: "what proves that the broker has no name was skipped: it may have another's",
			change: func(t *testing.T, n *node.Node, _ func(string, string)) {
				change(t, n, func(m *manifest.Manifest) { m.Operations[2].Skipped = "for a reason" })
				if n.BrokerSealed() {
					t.Error("its broker is taken for a sealed one")
				}
			},
			want: node.TakeOn,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			file := func(path, content string) {
				t.Helper()
				name := filepath.Join(root, path)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			open := func() *node.Node {
				n, err := node.Open(root, slog.New(slog.NewTextHandler(&log, nil)))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			file(platform.VersionFile, "16.03")
			file(kvexport.File, "the export")
			file(cloudinit.BinaryPath, "this build")
			n := open()
			n.Seal.Manifest = &manifest.Manifest{Format: 1, XiVO: "16.03",
				Operations: []manifest.Operation{{Name: "uuid-database"}, {Name: "rabbitmq-federation"}, {Name: "rabbitmq-name"}, {Name: "build-ssh-key"}, {Name: "ssh-host-keys"}, {Name: "swap", Skipped: "a container"}, {Name: "fs-journal"}, {Name: "free-space", Skipped: "a container"}},
				Files:      map[string]string{cloudinit.BinaryPath: manifest.Sum([]byte("this build"))},
				KV:         manifest.Sum([]byte("the export")),
			}
			if err := n.WriteState(node.ManifestFile, n.Seal.Manifest); err != nil {
				t.Fatal(err)
			}
			tc.change(t, n, file)

			n = open()
			if action, why := n.Decide(false); action != tc.want {
				t.Errorf("%s (%s), want %s", action, why, tc.want)
			}
			if tc.want == node.LeaveAlone {
				return
			}
			err := sealing.Verify(n)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error: got %v, want %q", err, tc.err)
			}
			if told := log.String(); (told == "") != (tc.told == "") || !strings.Contains(told, tc.told) {
				t.Errorf("told: %q, want %q", told, tc.told)
			}
		})
	}
}

// aServer is a server with these files. Nothing on it runs.
func aServer(t *testing.T, files map[string]string) *node.Node {
	t.Helper()
	n := nodetest.Bare(t)
	place(t, n, files)
	return n
}

func place(t *testing.T, n *node.Node, files map[string]string) {
	t.Helper()
	for name, content := range files {
		nodetest.Put(t, n, name, content)
	}
}

// sealOf is a seal of one operation.
func sealOf(t *testing.T, name string) engine.Phase[*node.Node] {
	t.Helper()
	all := sealing.AllOperations()
	i := slices.IndexFunc(all, func(op sealing.Operation) bool { return op.Name == name })
	if i < 0 {
		t.Fatalf("there is no operation %s", name)
	}
	return engine.Phase[*node.Node]{Name: "seal", Steps: []engine.Step[*node.Node]{all[i].Step}}
}

// run does one operation, and returns what it found and took out.
func run(t *testing.T, n *node.Node, name string) ([]string, error) {
	t.Helper()
	e := n.Runner().Step(t.Context(), sealOf(t, name), 0)
	if e.Skipped != "" {
		t.Errorf("%s was skipped: %s", name, e.Skipped)
	}
	return e.Changes, e.Err
}

// A run that was killed leaves copies of the KV and of the document, with the
// token and the secret in them.
func TestNothingOfOursStaysButWhatACloneNeeds(t *testing.T) {
	goes := []string{
		"/etc/xivo-firstboot/config.yml",
		consul.AtRestDir,
		platform.StateDir + "/.document.yml.xivo-firstboot-123",
		journalFile,
	}
	n := aServer(t, map[string]string{
		goes[0]: "", goes[1] + "/data/raft/raft.db": "the KV", goes[2]: "the secret", goes[3]: "{}",
		kvexport.File: "{}", node.ManifestFile: "{}", node.LockFile: "",
	})
	found, err := run(t, n, "our-state")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(goes)
	if diff := cmp.Diff(goes, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	left := slices.Sorted(maps.Keys(nodetest.Files(t, n.Platform.Root)))
	if diff := cmp.Diff([]string{n.Platform.Path(kvexport.File), n.Platform.Path(node.LockFile), n.Platform.Path(node.ManifestFile)}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestAChoiceThatTearsAGroupApartIsRefused(t *testing.T) {
	var every []string
	for _, op := range sealing.AllOperations() {
		every = append(every, op.Name)
	}
	for _, tc := range []struct {
		name            string
		enable, disable []string
		names           []string // of operations, in the error; nil: nothing is wrong
	}{
		{"all", nil, nil, nil},
		{"all, by name", every, nil, nil},
		{"no logs and no cache", nil, []string{"logs", "apt-cache"}, nil},
		{"only what needs nothing at the first boot", []string{"logs", "apt-cache", "shell-history", "machine-id"}, nil, nil},
		{"Consul as it is", nil, []string{"kv-export", "consul-state"}, nil},
		{"an export that nothing needs", nil, []string{"consul-state"}, nil},
		{"the KV would be lost", nil, []string{"kv-export"}, []string{"kv-export", "consul-state"}},
		{"the KV would be lost, and nothing put back", []string{"consul-state"}, nil, []string{"kv-export", "consul-state"}},
		{"the same with what clones need", []string{"consul-state", "units", "uuid-database"}, nil, []string{"kv-export", "consul-state"}},
		{"nobody would replace the placeholders", nil, []string{"units"}, []string{"units", "kv-export"}},
		{"clones would be left alone", nil, []string{"uuid-database"}, []string{"uuid-database", "kv-export"}},
		{"clones would have no certificate", []string{"certificate", "units"}, nil, []string{"uuid-database", "certificate"}},
		{"a certificate, and what makes it", []string{"certificate", "units", "uuid-database"}, nil, nil},
		{"a UUID that nobody replaces", []string{"uuid-database"}, nil, []string{"units", "uuid-database"}},
		{"our program alone", []string{"units"}, nil, nil},
		{"a name of nothing", nil, []string{"unit"}, []string{`"unit"`, "seal --list"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := sealing.Options{Enable: tc.enable, Disable: tc.disable}.Check()
			if (err != nil) != (tc.names != nil) {
				t.Fatalf("got %v", err)
			}
			for _, name := range tc.names {
				if !strings.Contains(err.Error(), name) {
					t.Errorf("%q is not in: %v", name, err)
				}
			}
		})
	}
}

func TestTheSealKeepsConsulsStateUntilTheKVIsExported(t *testing.T) {
	raft := platform.ConsulDataDir + "/raft/raft.db"
	n := aServer(t, map[string]string{raft: "the KV"})
	if _, err := run(t, n, "consul-state"); err == nil || !strings.Contains(err.Error(), "the KV's export is missing") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(n.Platform.Path(raft)); err != nil {
		t.Errorf("Consul's state is gone: %v", err)
	}
	place(t, n, map[string]string{kvexport.File: "{}"})
	if _, err := run(t, n, "consul-state"); err != nil {
		t.Error(err)
	}
}

func TestASealThatClonesCouldNotUseIsRefused(t *testing.T) {
	db := nodetest.Connect(t, server.Postgres(t, schema.SQL("15.20")))
	for _, tc := range []struct {
		name, says string
		options    sealing.Options
		sealed     bool
	}{
		{"sysvinit, which starts no unit", "without systemd", sealing.Options{}, false},
		{"logs alone, of an image", "sealed before, so uuid-database cannot be left out", sealing.Options{Enable: []string{"logs"}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := nodetest.Server(t, "15.19", db)
			if tc.sealed {
				n.Seal.Manifest = &manifest.Manifest{Format: 1, Operations: []manifest.Operation{{Name: "uuid-database"}}}
			}
			before := nodetest.Files(t, n.Platform.Root)
			if _, err := sealing.Seal(t.Context(), n, tc.options); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
			if diff := cmp.Diff(before, nodetest.Files(t, n.Platform.Root)); diff != "" {
				t.Errorf("written:\n%s", diff)
			}
		})
	}
}

// A seal that fails leaves an export, and the server runs on: what it stored
// since must come into the image.
func TestTheSealExportsAnewWhatConsulHolds(t *testing.T) {
	token := func(token string) map[string]string {
		return map[string]string{
			platform.ConsulDataDir + "/master_token":                  token,
			platform.ConsulConfigDir + "/config.json":                 `{"acl_master_token": "` + token + `"}`,
			platform.ConsulDataDir + "/default_xivo_consul_token.yml": "token: " + token + "\n",
			platform.ConsulDataDir + "/raft/raft.db":                  "state",
			platform.CertificateFile:                                  "a certificate",
			kvexport.File:                                             "the export",
		}
	}
	const original = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	for _, tc := range []struct {
		name   string
		token  string
		change func(*node.Node)
		says   string // part of the error; "": the export stays as it is
	}{
		{"a server on which a seal failed", original, func(*node.Node) {}, "no Consul answers"},
		{"a node on which a seal failed", original, func(n *node.Node) {
			n.Journal = n.NewJournal(node.Identity{})
			nodetest.Done(t, n, "become.consul-gone", node.Become, node.Settle)
		}, "no Consul answers"},
		{"a sealed image whose Consul somebody started", sealing.PlaceholderToken, func(n *node.Node) {
			n.Seal.Manifest = &manifest.Manifest{KV: manifest.Sum([]byte("the export"))}
		}, ""},
		{"a seal that emptied Consul and failed then, and Consul was started", sealing.PlaceholderToken, func(*node.Node) {}, "to seal with what Consul holds now, remove the file"},
		{"a sealed image", sealing.PlaceholderToken, func(n *node.Node) { os.RemoveAll(n.Platform.Path(platform.ConsulDataDir, "raft")) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := aServer(t, token(tc.token))
			n.Platform.Init = &nodetest.Manager{} // all runs
			n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return nil, errors.New("no Consul answers") }
			tc.change(n)
			_, err := run(t, n, kvexport.ExportStep)
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
			if raw, err := os.ReadFile(n.Platform.Path(kvexport.File)); string(raw) != "the export" {
				t.Errorf("the export that was there is gone before there is another: %q, %v", raw, err)
			}
		})
	}
}

func TestTheManifestHasNoMachineID(t *testing.T) {
	const machineID = "2b8f1c0e6a0a4f0e9b573f6f6e0c8a11"
	n := aServer(t, map[string]string{"/var/log/journal/" + machineID + "/system.journal": "lines", "/var/log/syslog": "lines"})
	removed, err := run(t, n, "logs")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"journals (1)", "/var/log/syslog"}, removed); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(n.Platform.Path("/var/log/journal", machineID)); err == nil {
		t.Error("the journal is still there")
	}
}

func TestNoRandomSeedIsWrittenWhenTheImageIsSwitchedOff(t *testing.T) {
	const seed = "/var/lib/systemd/random-seed"
	for _, there := range []bool{true, false} {
		n := aServer(t, nil)
		if there {
			place(t, n, map[string]string{seed: "a seed"})
		}
		unit := &seeding{file: n.Platform.Path(seed), up: true}
		n.Platform.Init = unit
		found, err := run(t, n, "random-seed")
		if err != nil || len(found) != 1 || !strings.Contains(found[0], seed) {
			t.Errorf("found %q, %v", found, err)
		}
		// As at shutdown.
		unit.Stop(t.Context(), "systemd-random-seed")
		if _, err := os.Stat(n.Platform.Path(seed)); err == nil {
			t.Error("the image has a random seed")
		}
	}
}

// seeding is systemd's unit, which writes a seed when it stops.
type seeding struct {
	platform.Init
	file string
	up   bool
}

func (s *seeding) Active(context.Context, string) (bool, error) { return s.up, nil }
func (s *seeding) Stop(context.Context, string) error {
	if !s.up {
		return nil
	}
	s.up = false
	return errors.Join(os.MkdirAll(filepath.Dir(s.file), 0o755), os.WriteFile(s.file, []byte("a new seed"), 0o600))
}

// An operation that does not apply to a version proves nothing: it looked at
// nothing.
func TestWhatDoesNotApplyIsSkippedInTheManifestAndNotProved(t *testing.T) {
	dsn := server.Postgres(t, "")
	const because = "the daemons of XiVO 15.20 take it from the database"
	for _, c := range []struct {
		version string
		skipped string // the reason, of both places of the environment
	}{
		{"15.20", because},
		{"16.03", ""},
	} {
		t.Run(c.version, func(t *testing.T) {
			n := nodetest.Server(t, c.version, nodetest.Connect(t, server.Database(t, dsn, schema.SQL(c.version))))
			n.Journal = nil
			underSystemd(t, n)
			var told []string
			n.Progress = func(e engine.Event) {
				if e.Skipped != "" {
					told = append(told, e.Step+": "+string(e.Skipped))
				}
			}
			before := nodetest.Read(t, n, nodetest.ProfileFile)
			o := sealing.Options{Enable: []string{"uuid-database", "uuid-files", "uuid-manager", sealing.InstallStep}}
			if _, err := sealing.Seal(t.Context(), n, o); err != nil {
				t.Fatal(err)
			}
			var wantTold []string
			if c.skipped != "" {
				wantTold = []string{"uuid-files: " + c.skipped, "uuid-manager: " + c.skipped}
			}
			if diff := cmp.Diff(wantTold, told); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
			if same := nodetest.Read(t, n, nodetest.ProfileFile) == before; same != (c.skipped != "") {
				t.Errorf("the daemons' file is as it was: %t", same)
			}

			m, err := manifest.Read(n.Platform.Path(node.ManifestFile))
			if err != nil {
				t.Fatal(err)
			}
			for _, op := range m.Operations {
				inEnvironment := op.Name == "uuid-files" || op.Name == "uuid-manager"
				if want := map[bool]string{true: c.skipped}[inEnvironment]; op.Skipped != want {
					t.Errorf("%s was skipped because %q, want %q", op.Name, op.Skipped, want)
				}
				if op.Skipped != "" && (len(op.Removed) > 0 || op.Disabled) {
					t.Errorf("%s was skipped, and yet %+v", op.Name, op)
				}
				if want := slices.Contains(o.Enable, op.Name) && (!inEnvironment || c.skipped == ""); m.Proved(op.Name) != want {
					t.Errorf("%s: proved is %t", op.Name, m.Proved(op.Name))
				}
			}
			if !m.Proved(node.SealedUUID) {
				t.Error("it is no sealed image")
			}
		})
	}
}

// underSystemd lets it be a booted machine with systemd, whose manager keeps its
// environment in a file.
func underSystemd(t *testing.T, n *node.Node) {
	t.Helper()
	bin := t.TempDir()
	env := filepath.Join(bin, "environment")
	script := `#!/bin/sh
case $1 in
is-system-running) echo running ;;
is-active) [ "$2" = postgresql ] && echo active ;;
show-environment) cat ` + env + ` ;;
set-environment) echo "$2" > ` + env + ` ;;
restart) echo "$2" >> ` + n.Platform.Path("/restarted") + ` ;;
*) echo "systemctl $*: not here" >&2; exit 1 ;;
esac
`
	if err := errors.Join(
		os.WriteFile(filepath.Join(bin, "systemctl"), []byte(script), 0o755),
		os.WriteFile(env, []byte("XIVO_UUID="+nodetest.OldUUID+"\n"), 0o644),
		os.MkdirAll(n.Platform.Path("/run/systemd/system"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	p, err := platform.Detect(n.Platform.Root)
	if err != nil {
		t.Fatal(err)
	}
	n.Platform.Init = p.Init
}
