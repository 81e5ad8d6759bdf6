// Package templates_test checks the templates that users copy.
package templates_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func templates(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*/xivo.pkr.hcl")
	if err != nil || len(names) < 6 {
		t.Fatalf("got %q, %v", names, err)
	}
	return names
}

func TestPackerAcceptsThem(t *testing.T) {
	packer := os.Getenv("XIVO_PACKER")
	if packer == "" {
		t.Skip("needs XIVO_PACKER, the path of Packer")
	}
	for _, name := range templates(t) {
		t.Run(filepath.Dir(name), func(t *testing.T) {
			for _, args := range [][]string{
				{"fmt", "-check", "-diff", name},
				// Not more: the plugins of the other builders are not here.
				{"validate", "-syntax-only", name},
			} {
				cmd := exec.CommandContext(t.Context(), packer, args...)
				// Nothing of this user's, and nothing from the world.
				cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_CONFIG_DIR="+t.TempDir(), "PACKER_PLUGIN_PATH="+t.TempDir())
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("packer %s: %v\n%s", strings.Join(args, " "), err, out)
				}
			}
		})
	}
}

// The templates differ in the source, what it needs to know, and how one logs in.
func TestTheyDifferInTheSourceOnly(t *testing.T) {
	var (
		comment = regexp.MustCompile(`(?m)^#.*\n`)
		source  = regexp.MustCompile(`(?ms)^source ".*?^}\n`)
		sources = regexp.MustCompile(`(?m)^  sources = .*\n`)
		sudo    = regexp.MustCompile(`(?m)^    sudo .*\n`)
		plugin  = regexp.MustCompile(`(?ms)^    (qemu|proxmox|vsphere|openstack|amazon) = \{.*?^    \}\n`)
		vars    = regexp.MustCompile(`(?ms)^variable "(\w+)" \{.*?^}\n`)
		common  = []string{"xivo_version", "allow_configured", "values_file", "firstboot_binary"}
	)
	strip := func(name string) string {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s := string(raw)
		for _, re := range []*regexp.Regexp{comment, source, sources, sudo, plugin} {
			s = re.ReplaceAllString(s, "")
		}
		s = vars.ReplaceAllStringFunc(s, func(v string) string {
			for _, name := range common {
				if strings.HasPrefix(v, `variable "`+name+`"`) {
					return regexp.MustCompile(`(?m)^  description .*\n`).ReplaceAllString(v, "")
				}
			}
			return ""
		})
		return regexp.MustCompile(`\n{2,}`).ReplaceAllString(strings.TrimSpace(s), "\n")
	}
	want := strip("nspawn/xivo.pkr.hcl")
	for _, name := range templates(t) {
		if diff := cmp.Diff(want, strip(name)); diff != "" {
			t.Errorf("%s (-nspawn +got):\n%s", name, diff)
		}
	}
}

// Their first lines are copied into an interactive bash: what other users of the
// host see of it has no password, and `!` would be looked up in its history.
func TestTheirCommandLinesCanBeCopied(t *testing.T) {
	for _, name := range templates(t) {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			command, found := strings.CutPrefix(line, "#   ")
			if found && regexp.MustCompile(`-var '?\w*(password|token|secret)`).MatchString(command) {
				t.Errorf("%s has a secret on a command line: %s", name, command)
			}
			if found && strings.Contains(regexp.MustCompile(`'[^']*'`).ReplaceAllString(command, ""), "!") {
				t.Errorf("%s has an exclamation mark outside of single quotes: %s", name, command)
			}
		}
	}
}
