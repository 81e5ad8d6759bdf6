// Package architecture holds the rules on who may import whom, as a test.
package architecture

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/xivo-mesh/packer-plugin-xivo"

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	all := map[string]pkg{}
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, module+"/")] = p
	}
	if len(all) < 10 {
		t.Fatalf("go list found %d packages", len(all))
	}
	return all
}

// ours returns the imports of a package that are in this module, shortened.
func (p pkg) ours() []string {
	var out []string
	for _, i := range p.Imports {
		if short, ok := strings.CutPrefix(i, module+"/"); ok {
			out = append(out, short)
		}
	}
	return out
}

func TestImportRules(t *testing.T) {
	all := packages(t)

	for name, p := range all {
		switch {
		case path.Dir(name) == "firstboot":
			// One dependency each: what they share is platform, secret and postgres.
			for _, i := range p.ours() {
				if !slices.Contains([]string{"firstboot/platform", "firstboot/secret", "firstboot/postgres"}, i) {
					t.Errorf("%s imports its sister %s", name, i)
				}
				if name == "firstboot/platform" || name == "firstboot/secret" {
					t.Errorf("%s imports %s; it may import nothing of ours", name, i)
				}
			}
		case strings.HasPrefix(name, "test/standin"):
			for _, i := range p.ours() {
				if !strings.HasPrefix(i, "test/standin") {
					t.Errorf("the stand-ins share %s with what they test", i)
				}
			}
		case strings.HasPrefix(name, "test/"):
		default:
			for _, i := range p.ours() {
				if strings.HasPrefix(i, "test/") {
					t.Errorf("%s imports %s", name, i)
				}
				if i == "firstboot" && name != "cmd/xivo-firstboot" {
					t.Errorf("%s imports firstboot; only its command does", name)
				}
			}
		}
	}
}

func TestOnlyCloudinitReadsYAMLOfUsers(t *testing.T) {
	allowed := []string{
		"cloudinit",
		"firstboot/ctid",  // XiVO's own files
		"packer/userdata", // writes what cloudinit then reads
	}
	for name, p := range packages(t) {
		if !strings.HasPrefix(name, "test/") && !slices.Contains(allowed, name) && slices.Contains(p.Imports, "gopkg.in/yaml.v3") {
			t.Errorf("%s imports yaml.v3", name)
		}
	}
}

func TestTheFirstBootBinaryDoesNotLinkPacker(t *testing.T) {
	p, ok := packages(t)["cmd/xivo-firstboot"]
	if !ok {
		t.Fatal("cmd/xivo-firstboot is not there")
	}
	for _, d := range p.Deps {
		if strings.HasPrefix(d, "github.com/hashicorp/packer-plugin-sdk") {
			t.Errorf("it links %s", d)
		}
	}
}

// Only a build that asks for it can be told to kill itself.
func TestTheFirstBootBinaryHasNoFailpoints(t *testing.T) {
	for tags, want := range map[string]bool{"": false, "failpoints": true} {
		program := filepath.Join(t.TempDir(), "xivo-firstboot")
		build := exec.CommandContext(t.Context(), "go", "build", "-tags="+tags, "-o", program, module+"/cmd/xivo-firstboot")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		content, err := os.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		if got := bytes.Contains(content, []byte("ENGINE_FAILPOINTS")); got != want {
			t.Errorf("with the build tags %q it has failpoints: %v", tags, got)
		}
	}
}
