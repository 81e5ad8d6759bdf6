package firstboot

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
