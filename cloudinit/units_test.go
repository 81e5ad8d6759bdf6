package cloudinit

import (
	"flag"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

//go:generate go test -run ^TestUnitsNameTheDaemonsOfAllVersions$ . -update

var update = flag.Bool("update", false, "write the lists of daemons in the units anew")

// listed is the line after which a unit has a list of daemons.
const listed = "# The daemons of all versions; `go generate ./cloudinit` writes them:"

// withDaemons is a unit with its lists written anew. A list is the lines that
// follow the comment and set the same as the first of them.
func withDaemons(unit string, daemons []string) string {
	const width = 88
	lines := strings.Split(unit, "\n")
	for i := 0; i+1 < len(lines); i++ {
		if lines[i] != listed {
			continue
		}
		key, _, _ := strings.Cut(lines[i+1], "=")
		end := i + 1
		for end < len(lines) && strings.HasPrefix(lines[end], key+"=") {
			end++
		}
		var list []string
		for _, name := range daemons {
			last := len(list) - 1
			if last < 0 || len(list[last])+len(" "+name+".service") > width {
				list = append(list, key+"="+name+".service")
			} else {
				list[last] += " " + name + ".service"
			}
		}
		lines = slices.Replace(lines, i+1, end, list...)
	}
	return strings.Join(lines, "\n")
}

// The names are platform's, which cloudinit does not import: the units are files
// of their own, and this test keeps the two together.
func TestUnitsNameTheDaemonsOfAllVersions(t *testing.T) {
	daemons := platform.Daemons()
	for unit, lists := range map[string][]string{
		"xivo-firstboot-settle.service": {"Unit.Before", "Install.RequiredBy"},
		"xivo-mesh.service":             {"Unit.After"},
	} {
		name := path.Join("image", unitDir, unit)
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		if *update {
			text = withDaemons(text, daemons)
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(withDaemons(text, daemons), text); diff != "" {
			t.Errorf("%s is not as `go generate ./cloudinit` writes it (-want +got):\n%s", unit, diff)
		}

		// Not by the same way: a comment that is spelled differently begins no list.
		settings := parseUnit(text)
		for _, list := range lists {
			for _, daemon := range daemons {
				if !slices.Contains(settings[list], daemon+".service") {
					t.Errorf("%s: %s misses %s", unit, list, daemon)
				}
			}
		}
	}
}
