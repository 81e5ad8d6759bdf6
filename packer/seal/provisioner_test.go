package seal

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/remote"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/shell"
)

// machine is a communicator that writes down what it is asked, and answers.
type machine struct {
	packersdk.Communicator // what is not expected panics

	asked    []string
	fails    map[string]int // exit status by the last words of a command
	says     map[string]string
	manifest string
}

func (m *machine) Start(_ context.Context, cmd *packersdk.RemoteCmd) error {
	command := strings.TrimSuffix(cmd.Command, " </dev/null")
	m.asked = append(m.asked, command)
	status := 0
	for end, s := range m.fails {
		if strings.HasSuffix(command, end) {
			status = s
		}
	}
	go func() {
		says := m.says[command]
		if strings.HasPrefix(command, "mktemp ") && says == "" {
			says = "/tmp/xivo-seal.0123456789\n"
		}
		io.WriteString(cmd.Stdout, says)
		cmd.SetExited(status)
	}()
	return nil
}

func (m *machine) Upload(path string, content io.Reader, _ *os.FileInfo) error {
	raw, err := io.ReadAll(content)
	m.asked = append(m.asked, fmt.Sprintf("upload %s: %s", path, raw))
	return err
}

func (m *machine) Download(path string, to io.Writer) error {
	m.asked = append(m.asked, "download "+path)
	_, err := io.WriteString(to, m.manifest)
	return err
}

func TestProvision(t *testing.T) {
	const (
		private = "mktemp -d /tmp/xivo-seal.XXXXXXXXXX"
		upload  = "upload /tmp/xivo-seal.0123456789/xivo-firstboot: the binary"
		install = "install -D -o root -g root -m 0755 /tmp/xivo-seal.0123456789/xivo-firstboot /usr/sbin/xivo-firstboot"
		remove  = "rm -rf /tmp/xivo-seal.0123456789"
		seal    = "/usr/sbin/xivo-firstboot seal"
		fetch   = "download /var/lib/xivo-firstboot/seal.json"
		last    = "/usr/sbin/xivo-firstboot seal --last"
		values  = `{"format": 1, "values": [{"name": "it", "value": "a secret"}]}`
	)
	var (
		isThere    = shell.Quote("sh", "-c", `test -e "$1" && echo there || echo absent`, "sh", valuesPath)
		readValues = shell.Quote("cat", valuesPath)
	)
	type settings = map[string]any
	for _, tc := range []struct {
		name     string
		settings settings
		machine  machine
		want     []string
		err      string // part of the error
	}{
		{
			name:    "the manifest comes home before the keys go",
			machine: machine{manifest: `{"format": 1}`},
			want:    []string{private, upload, install, remove, seal, fetch, last},
		}, {
			name:     "what a person chose",
			settings: settings{"allow_configured": true, "enable": []string{"one"}, "disable": []string{"two", "three-4"}},
			machine:  machine{manifest: `{}`},
			want: []string{private, upload, install, remove, seal + " --allow-configured --enable one --disable two --disable three-4",
				fetch, last + " --allow-configured --enable one --disable two --disable three-4"},
		}, {
			name:     "as another user",
			settings: settings{"sudo": true},
			machine:  machine{manifest: `{}`},
			want: []string{private, upload, "sudo -n " + install, "sudo -n " + remove, "sudo -n " + seal,
				private, "sudo -n install -m 0644 /var/lib/xivo-firstboot/seal.json /tmp/xivo-seal.0123456789/seal.json",
				"download /tmp/xivo-seal.0123456789/seal.json", "sudo -n " + remove, "sudo -n " + last},
		}, {
			name:     "what was the machine's own comes home, and goes, before its free space is written over",
			settings: settings{"values_file": true, "sudo": true},
			machine:  machine{manifest: `{}`, says: map[string]string{"sudo -n " + isThere: "there\n", "sudo -n " + readValues: values}},
			want: []string{private, upload, "sudo -n " + install, "sudo -n " + remove, "sudo -n " + seal + " --values " + valuesPath,
				private, "sudo -n install -m 0644 /var/lib/xivo-firstboot/seal.json /tmp/xivo-seal.0123456789/seal.json",
				"download /tmp/xivo-seal.0123456789/seal.json", "sudo -n " + remove,
				"sudo -n " + isThere, "sudo -n " + readValues, "sudo -n rm -f " + valuesPath, "sudo -n " + last},
		}, {
			name:     "what is no such file keeps the keys",
			settings: settings{"values_file": true},
			machine:  machine{manifest: `{}`, says: map[string]string{isThere: "there\n", readValues: "no values"}},
			want:     []string{private, upload, install, remove, seal + " --values " + valuesPath, fetch, isThere, readValues},
			err:      "is no JSON (9 bytes) (the machine still has the keys of this build",
		}, {
			name:    "a machine that makes no folder",
			machine: machine{manifest: `{}`, says: map[string]string{private: "/tmp\n"}},
			want:    []string{private},
			err:     `unexpected answer "/tmp"`,
		}, {
			name:    "a seal that fails",
			machine: machine{fails: map[string]int{seal: 1}},
			want:    []string{private, upload, install, remove, seal},
			err:     "not sealed: make no image of it",
		}, {
			name:    "a manifest that is none keeps the keys",
			machine: machine{manifest: "cat: no such file"},
			want:    []string{private, upload, install, remove, seal, fetch},
			err:     "is no JSON",
		}, {
			name:    "an empty manifest too",
			machine: machine{},
			want:    []string{private, upload, install, remove, seal, fetch},
			err:     "is no JSON",
		}, {
			name:    "JSON that is no manifest keeps the keys, too",
			machine: machine{manifest: `{"operations": "all"}`},
			want:    []string{private, upload, install, remove, seal, fetch},
			err:     "is no manifest of a seal",
		}, {
			name:    "keys that stay",
			machine: machine{manifest: `{}`, fails: map[string]int{last: 1}},
			want:    []string{private, upload, install, remove, seal, fetch, last},
			err:     "still has the keys of this build",
		}, {
			name:    "a connection that breaks",
			machine: machine{fails: map[string]int{install: packersdk.CmdDisconnect}},
			want:    []string{private, upload, install},
			err:     "the connection was lost",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			binary, manifest := filepath.Join(dir, "xivo-firstboot"), filepath.Join(dir, "out", "manifest.json")
			valuesFile := filepath.Join(dir, "kept", "values.json")
			if tc.settings["values_file"] != nil {
				tc.settings["values_file"] = valuesFile
			}
			if err := os.WriteFile(binary, []byte("the binary"), 0o755); err != nil {
				t.Fatal(err)
			}
			var p Provisioner
			if err := p.Prepare(settings{"firstboot_binary": binary, "manifest_file": manifest}, tc.settings); err != nil {
				t.Fatal(err)
			}

			err := p.Provision(t.Context(), packersdk.TestUi(t), &tc.machine, nil)
			if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
				t.Errorf("error: got %v, want %q", err, tc.err)
			}
			if diff := cmp.Diff(tc.want, tc.machine.asked); diff != "" {
				t.Errorf("asked of the machine (-want +got):\n%s", diff)
			}
			if kept, err := os.ReadFile(valuesFile); tc.settings["values_file"] != nil && tc.err == "" {
				st, statErr := os.Stat(valuesFile)
				if err != nil || statErr != nil || string(kept) != values || st.Mode().Perm() != 0o600 {
					t.Errorf("values: %q, %v, %v", kept, st, err)
				}
			} else if err == nil {
				t.Errorf("values were written: %q", kept)
			}
			got, err := os.ReadFile(manifest)
			switch sealed := tc.err == "" || strings.Contains(tc.err, "keys"); {
			case sealed && (err != nil || string(got) != tc.machine.manifest):
				t.Errorf("manifest: %q, %v", got, err)
			case !sealed && err == nil:
				t.Errorf("there is a manifest of no seal: %q", got)
			}
		})
	}
}

func TestProvisionShowsTheList(t *testing.T) {
	var p Provisioner
	dir := filepath.Join(t.TempDir(), "output-xivo")
	if err := p.Prepare(map[string]any{"firstboot_binary": "provisioner.go", "manifest_file": dir}); err != nil {
		t.Fatal(err)
	}
	// The builder makes it later.
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	ui := &packersdk.BasicUi{Reader: strings.NewReader(""), Writer: &shown, ErrorWriter: &shown}
	m := &machine{manifest: "{}", says: map[string]string{strings.Join(p.sealCommand(), " "): "1/26 kv-export\n"}}
	if err := p.Provision(t.Context(), ui, m, nil); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1/26 kv-export", filepath.Join(dir, "xivo-seal-manifest.json")} {
		if !strings.Contains(shown.String(), want) {
			t.Errorf("%q is not in:\n%s", want, &shown)
		}
	}
}

func TestProvisionShowsWhatWasSkipped(t *testing.T) {
	var p Provisioner
	if err := p.Prepare(map[string]any{"firstboot_binary": "provisioner.go", "manifest_file": t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	ui := &packersdk.BasicUi{Reader: strings.NewReader(""), Writer: &shown, ErrorWriter: &shown}
	m := &machine{manifest: `{"format": 1, "operations": [
		{"name": "kv-export", "text": "Consul's KV is exported", "removed": ["1 key"]},
		{"name": "uuid-manager", "text": "the XiVO UUID", "skipped": "this XiVO keeps none there"},
		{"name": "logs", "text": "logs are empty", "disabled": true}
	]}`}
	if err := p.Provision(t.Context(), ui, m, nil); err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(shown.String()) {
		if strings.Contains(line, "skipped") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	want := []string{"skipped: uuid-manager, because this XiVO keeps none there"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestCarriedBinary(t *testing.T) {
	for debian, want := range map[string]string{
		"amd64": "for amd64", "i386": "for 386", "arm64": "for arm64", "riscv64": `"riscv64", which is unknown`,
	} {
		var p Provisioner
		m := &machine{says: map[string]string{
			"dpkg --print-architecture": debian + "\n",
			"uname -m":                  "x86_64\n", // of the host, where the machine is a container
		}}
		binary, err := p.binary(t.Context(), &remote.Machine{Communicator: m, UI: packersdk.TestUi(t)})
		if len(binary) > 0 && err == nil {
			continue // this test was built with it
		}
		if err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "not "+want) {
			t.Errorf("%s: got %v, want %q", debian, err, want)
		}
	}
}

func TestConfig(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "binary")
	if err := os.WriteFile(binary, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	type settings = map[string]any
	for _, tc := range []struct {
		name     string
		settings settings
		want     string
	}{
		{"no such binary", settings{"firstboot_binary": "/no/such"}, "/no/such"},
		{"a folder as binary", settings{"firstboot_binary": "/"}, "not a file"},
		{"an operation that a shell would see differently", settings{"firstboot_binary": binary, "disable": []string{"a; reboot"}}, `"a; reboot"`},
		{"an option as operation", settings{"firstboot_binary": binary, "disable": []string{"--last"}}, `"--last"`},
		{"an unknown setting", settings{"firstboot_binary": binary, "allow_configure": true}, "allow_configure"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var c Config
			if err := c.Prepare(tc.settings); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error that says %q", err, tc.want)
			}
		})
	}

	// Two sources of one build run at the same time.
	for _, tc := range []struct{ builder, name, want string }{
		{"qemu", "xivo", "xivo-seal-manifest-qemu.xivo.json"},
		{"proxmox-iso", "xivo", "xivo-seal-manifest-proxmox-iso.xivo.json"},
		{"qemu", "a/b", "xivo-seal-manifest-qemu.a-b.json"},
	} {
		var c Config
		if err := c.Prepare(settings{"firstboot_binary": binary, "packer_builder_type": tc.builder, "packer_build_name": tc.name}); err != nil || c.manifestFile() != tc.want {
			t.Errorf("%s.%s: got %q, %v; want %q", tc.builder, tc.name, c.manifestFile(), err, tc.want)
		}
	}
}
