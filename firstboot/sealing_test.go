package firstboot

import (
	"bytes"
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
				Operations: []seal.Operation{{Name: "uuid-database"}, {Name: "build-ssh-key"}, {Name: "ssh-host-keys"}},
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
	put(t, n, files)
	return n
}

func put(t *testing.T, n *Node, files map[string]string) {
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
