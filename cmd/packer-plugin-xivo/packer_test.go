package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

// TestPackers runs every component in the oldest Packer and the newest that the
// plugin is for, installed in the ways that there are. What a machine is needed
// for is only validated here; each Packer bakes one in packer/nspawn.
func TestPackers(t *testing.T) {
	old, current := os.Getenv("XIVO_PACKER_OLD"), os.Getenv("XIVO_PACKER")
	if old == "" || current == "" {
		t.Skip("needs XIVO_PACKER_OLD and XIVO_PACKER, the paths of Packer 1.9.4 and 1.15.0")
	}
	plugin := filepath.Join(t.TempDir(), "packer-plugin-xivo")
	if out, err := exec.Command("go", "build", "-o", plugin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const template, copied = "testdata/all.pkr.hcl", "../../packer/templates/nspawn/xivo.pkr.hcl"

	for _, tc := range []struct {
		name, packer, version string
		install               func(*testing.T, packer, string)
	}{
		{"1.9.4, the binary put into place", old, "1.9.4", put},
		{"1.15.0, the binary put into place", current, "1.15.0", put},
		{"1.15.0, with packer plugins install", current, "1.15.0", installPath},
	} {
		t.Run(tc.name, func(t *testing.T) {
			// Short: the plugin's socket is in it, and its path has room for 107 bytes.
			home, err := os.MkdirTemp("", "xivo-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.RemoveAll(home) })
			p := packer{binary: tc.packer, home: home}
			if out := p.run(t, "version"); !strings.Contains(out, "v"+tc.version) {
				t.Fatalf("it is another Packer: %s", out)
			}
			tc.install(t, p, plugin)

			// No plugin is fetched: there is nothing to fetch it from.
			p.run(t, "init", template)
			p.run(t, "validate", "-var", "source_image="+plugin, template)
			p.run(t, "validate", "-var", "source_image="+plugin, "-var", "firstboot_binary="+plugin, copied)
			if out := p.run(t, "inspect", "-var", "source_image="+plugin, template); !strings.Contains(out, "xivo-nspawn") {
				t.Errorf("inspect does not show the builder: %s", out)
			}
			out := p.run(t, "build", "-only=null.seed", "-var", "source_image="+plugin, "-var", "output_directory="+home, template)
			if _, err := os.Stat(filepath.Join(home, "node1.iso")); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			// Shown by a provisioner, and in the log of Packer and of the plugin.
			if strings.Contains(out, "four red pens on a mat") || !strings.Contains(out, "secret: <sensitive>") || !strings.Contains(out, "[DEBUG]") {
				t.Errorf("the secret shows, or nothing was to show it:\n%s", out)
			}
		})
	}
}

// On other systems than Linux it is built without the builder.
func TestItBuildsForAMac(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "vet", ".")
	cmd.Env = append(os.Environ(), "GOOS=darwin", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// packer is a Packer that knows of nothing outside of its home.
type packer struct{ binary, home string }

func (p packer) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), p.binary, args...)
	cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1", "PACKER_LOG=1", "TMPDIR="+p.home,
		"PACKER_CONFIG_DIR="+filepath.Join(p.home, "config"), "PACKER_PLUGIN_PATH="+filepath.Join(p.home, "plugins"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("packer %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

const source = "github.com/xivo-mesh/xivo"

func installPath(t *testing.T, p packer, plugin string) {
	p.run(t, "plugins", "install", "--path", plugin, source)
}

// put does by hand what `packer init` does with a release.
func put(t *testing.T, p packer, plugin string) {
	binary, err := os.ReadFile(plugin)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(p.home, "plugins", source)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, fmt.Sprintf("packer-plugin-xivo_v%s_x5.0_%s_%s", version.Version, runtime.GOOS, runtime.GOARCH))
	if err := os.WriteFile(name, binary, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+"_SHA256SUM", fmt.Appendf(nil, "%x", sha256.Sum256(binary)), 0o644); err != nil {
		t.Fatal(err)
	}
}
