package firstboot

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

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// A first boot compares the image with its manifest before it changes anything.
func TestManifestAtFirstBoot(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, n *Node, file func(path, content string))
		want   Action
		err    string // part of the error
		told   string // part of the log
	}{
		{
			name:   "the image is as it was sealed",
			change: func(*testing.T, *Node, func(string, string)) {},
			want:   Become,
		}, {
			name: "the export of the KV was damaged: its data would be lost",
			change: func(_ *testing.T, _ *Node, file func(string, string)) {
				file(exportFile, "half of the ex")
			},
			want: Become, err: "kv.json is not the export that the seal made",
		}, {
			name: "the export of the KV is gone",
			change: func(t *testing.T, n *Node, _ func(string, string)) {
				if err := os.Remove(n.Platform.Path(exportFile)); err != nil {
					t.Fatal(err)
				}
			},
			want: Become, err: "the export of Consul's KV cannot be read",
		}, {
			name: "it was a node meanwhile, and cloud-init clean was run: the KV is in Consul",
			change: func(t *testing.T, n *Node, file func(string, string)) {
				if !n.brokerSealed() {
					t.Error("its broker was sealed")
				}
				if err := os.Remove(n.Platform.Path(exportFile)); err != nil {
					t.Fatal(err)
				}
				file(platform.ConsulDataDir+"/raft/raft.db", "the state")
				if n.brokerSealed() {
					t.Error("its broker is taken for a sealed one")
				}
			},
			want: Become,
		}, {
			name:   "the manifest was cut off",
			change: func(_ *testing.T, _ *Node, file func(string, string)) { file(manifestFile, `{"format": 1, "op`) },
			want:   Become, err: "is damaged",
		}, {
			name:   "the manifest of a later release",
			change: func(_ *testing.T, _ *Node, file func(string, string)) { file(manifestFile, `{"format": 2}`) },
			want:   Become, err: "has format 2",
		}, {
			name: "XiVO was upgraded in the image",
			change: func(_ *testing.T, _ *Node, file func(string, string)) {
				file(platform.VersionFile, "16.16")
			},
			want: Become, told: "sealed=16.03 now=16.16",
		}, {
			name: "a later provisioner changed one of our files",
			change: func(_ *testing.T, _ *Node, file func(string, string)) {
				file(BinaryPath, "another build")
			},
			want: Become, told: "file=" + BinaryPath,
		}, {
			name: "the keys of the build were left",
			change: func(t *testing.T, n *Node, _ func(string, string)) {
				n.manifest.Operations = n.manifest.Operations[:1]
				if err := n.writeState(manifestFile, n.manifest); err != nil {
					t.Fatal(err)
				}
			},
			want: Become, told: "operation=build-ssh-key",
		}, {
			name: "the UUID was left in on request, so it is no sealed image",
			change: func(t *testing.T, n *Node, _ func(string, string)) {
				n.manifest.Operations[0].Disabled = true
				if err := n.writeState(manifestFile, n.manifest); err != nil {
					t.Fatal(err)
				}
			},
			want: LeaveAlone,
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
			open := func() *Node {
				n, err := Open(root, slog.New(slog.NewTextHandler(&log, nil)))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			file(platform.VersionFile, "16.03")
			file(exportFile, "the export")
			file(BinaryPath, "this build")
			n := open()
			n.manifest = &seal.Manifest{Format: 1, XiVO: "16.03",
				Operations: []seal.Operation{{Name: "uuid-database"}, {Name: "rabbitmq-federation"}, {Name: "rabbitmq-name"}, {Name: "build-ssh-key"}, {Name: "ssh-host-keys"}},
				Files:      map[string]string{BinaryPath: seal.Sum([]byte("this build"))},
				KV:         seal.Sum([]byte("the export")),
			}
			if err := n.writeState(manifestFile, n.manifest); err != nil {
				t.Fatal(err)
			}
			tc.change(t, n, file)

			n = open()
			if action, why := n.Decide(false); action != tc.want {
				t.Errorf("%s (%s), want %s", action, why, tc.want)
			}
			if tc.want == LeaveAlone {
				return
			}
			err := n.verifySeal()
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error: got %v, want %q", err, tc.err)
			}
			if told := log.String(); (told == "") != (tc.told == "") || !strings.Contains(told, tc.told) {
				t.Errorf("told: %q, want %q", told, tc.told)
			}
		})
	}
}

// aServer is a server with these files.
func aServer(t *testing.T, files map[string]string) *Node {
	t.Helper()
	n := nodeOf(t)
	n.Journal = nil
	n.Platform = &platform.Platform{Root: t.TempDir()}
	place(t, n, files)
	return n
}

func place(t *testing.T, n *Node, files map[string]string) {
	t.Helper()
	for name, content := range files {
		file := n.Platform.Path(name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// operation is one of the seal by its name.
func operation(t *testing.T, name string) Step {
	t.Helper()
	all := SealOperations()
	i := slices.IndexFunc(all, func(op SealOperation) bool { return op.Name == name })
	if i < 0 {
		t.Fatalf("there is no operation %s", name)
	}
	return all[i].Step
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
		exportFile: "{}", manifestFile: "{}", lockFile: "",
	})
	found, err := operation(t, "our-state").run(t.Context(), n, "seal.our-state")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(goes)
	if diff := cmp.Diff(goes, found); diff != "" {
		t.Errorf("found (-want +got):\n%s", diff)
	}
	left := slices.Sorted(maps.Keys(files(t, n.Platform.Root)))
	if diff := cmp.Diff([]string{n.Platform.Path(exportFile), n.Platform.Path(lockFile), n.Platform.Path(manifestFile)}, left); diff != "" {
		t.Errorf("left (-want +got):\n%s", diff)
	}
}

func TestAChoiceThatTearsAGroupApartIsRefused(t *testing.T) {
	var every []string
	for _, op := range append(SealOperations(), LastOperations()...) {
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
			err := SealOptions{Enable: tc.enable, Disable: tc.disable}.check()
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
	if _, err := operation(t, "consul-state").run(t.Context(), n, "seal.consul-state"); err == nil || !strings.Contains(err.Error(), "the KV's export is missing") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(n.Platform.Path(raft)); err != nil {
		t.Errorf("Consul's state is gone: %v", err)
	}
	place(t, n, map[string]string{exportFile: "{}"})
	if _, err := operation(t, "consul-state").run(t.Context(), n, "seal.consul-state"); err != nil {
		t.Error(err)
	}
}

func TestASealThatClonesCouldNotUseIsRefused(t *testing.T) {
	db := open(t, server.Postgres(t, schema.SQL("15.20")))
	for _, tc := range []struct {
		name, says string
		options    SealOptions
		sealed     bool
	}{
		{"sysvinit, which starts no unit", "without systemd", SealOptions{}, false},
		{"logs alone, of an image", "sealed before, so uuid-database cannot be left out", SealOptions{Enable: []string{"logs"}}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := aNode(t, "15.19", db)
			if tc.sealed {
				n.manifest = &seal.Manifest{Format: 1, Operations: []seal.Operation{{Name: "uuid-database"}}}
			}
			before := files(t, n.Platform.Root)
			if _, err := n.Seal(t.Context(), tc.options); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want an error that says %q", err, tc.says)
			}
			if diff := cmp.Diff(before, files(t, n.Platform.Root)); diff != "" {
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
			exportFile:                                                "the export",
		}
	}
	const original = "0c1b5e1e-7c1f-4d5e-9f5b-0a0f3d1c2b3a"
	for _, tc := range []struct {
		name   string
		token  string
		change func(*Node)
		says   string // part of the error; "": the export stays as it is
	}{
		{"a server on which a seal failed", original, func(*Node) {}, "no Consul answers"},
		{"a node on which a seal failed", original, func(n *Node) {
			n.Journal = newJournal(n.Platform.Path(journalFile), Instance{}, Identity{})
			n.Journal.Steps = map[string]Stamp{consulGone: {State: done}, BecomePhase.Name: {State: done}, SettlePhase.Name: {State: done}}
		}, "no Consul answers"},
		{"a sealed image whose Consul somebody started", sealedToken, func(n *Node) {
			n.manifest = &seal.Manifest{KV: seal.Sum([]byte("the export"))}
		}, ""},
		{"a seal that emptied Consul and failed then, and Consul was started", sealedToken, func(*Node) {}, "to seal with what Consul holds now, remove the file"},
		{"a sealed image", sealedToken, func(n *Node) { os.RemoveAll(n.Platform.Path(platform.ConsulDataDir, "raft")) }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := aServer(t, token(tc.token))
			n.Platform.Init, n.consulErr = &services{up: true}, errors.New("no Consul answers")
			tc.change(n)
			_, err := operation(t, kvExport).run(t.Context(), n, "seal.kv-export")
			if (err == nil) != (tc.says == "") || err != nil && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
			if raw, err := os.ReadFile(n.Platform.Path(exportFile)); string(raw) != "the export" {
				t.Errorf("the export that was there is gone before there is another: %q, %v", raw, err)
			}
		})
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
		found, err := operation(t, "random-seed").run(t.Context(), n, "seal.random-seed")
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
