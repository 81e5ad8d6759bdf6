// Package architecture holds the rules on who may import whom, as a test.
package architecture

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
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

// floors are the packages of firstboot from the top. A package imports those of
// floors below its own, and no sister: nothing else, and no arrow runs back up.
var floors = [][]string{
	{"firstboot"},
	{"firstboot/become", "firstboot/converge", "firstboot/sealing"},
	{"firstboot/node"},
	{"firstboot/kvexport"},
	// What wraps one dependency each; mesh is pure.
	{"firstboot/consul", "firstboot/rabbitmq", "firstboot/directory", "firstboot/ctid", "firstboot/identity", "firstboot/firewall", "firstboot/overlay", "firstboot/localnet", "firstboot/mesh"},
	{"firstboot/postgres"},
	{"firstboot/platform", "firstboot/remains"},
	{"firstboot/files", "firstboot/secret", "firstboot/manifest", "firstboot/disk"},
	{"firstboot/engine", "firstboot/limit"},
}

// floorOf is the number of a package's floor, from the top.
func floorOf(name string) (int, bool) {
	i := slices.IndexFunc(floors, func(floor []string) bool { return slices.Contains(floor, name) })
	return i, i >= 0
}

func isTestHelp(name string) bool { return name == "firstboot/node/nodetest" }

func TestArrowsOnlyGoDown(t *testing.T) {
	all := packages(t)
	for name, p := range all {
		if !strings.HasPrefix(name, "firstboot") || isTestHelp(name) {
			continue
		}
		floor, known := floorOf(name)
		if !known {
			t.Errorf("%s is on no floor: say in this test what may import it", name)
			continue
		}
		for _, i := range p.ours() {
			if i == "cloudinit" {
				// The user's document, and the files of an image: for those who know the
				// order of things.
				if below, _ := floorOf("firstboot/node"); floor > below {
					t.Errorf("%s imports cloudinit", name)
				}
				continue
			}
			if other, known := floorOf(i); !known || other <= floor {
				t.Errorf("%s imports %s, which is not below it", name, i)
			}
		}
	}
	for _, floor := range floors {
		for _, name := range floor {
			if _, ok := all[name]; !ok {
				t.Errorf("%s is on a floor, and is no package", name)
			}
		}
	}
}

func TestWhoMayImportWhom(t *testing.T) {
	for name, p := range packages(t) {
		for _, i := range p.ours() {
			switch {
			case strings.HasPrefix(name, "test/standin"):
				if !strings.HasPrefix(i, "test/standin") {
					t.Errorf("the stand-ins share %s with what they test", i)
				}
			case strings.HasPrefix(name, "test/"):
			case strings.HasPrefix(i, "test/"):
				t.Errorf("%s imports %s", name, i)
			case isTestHelp(i):
				t.Errorf("%s imports %s, which is for tests", name, i)
			case strings.HasPrefix(name, "firstboot"):
			case i == "firstboot/become", i == "firstboot" && name != "cmd/xivo-firstboot":
				t.Errorf("%s imports %s; only the command of first boot does", name, i)
			case strings.HasPrefix(name, "packer/") && strings.HasPrefix(i, "firstboot") && i != "firstboot/platform" && i != "firstboot/secret":
				t.Errorf("%s imports %s; of first boot, the plugin knows versions and what a secret is", name, i)
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
