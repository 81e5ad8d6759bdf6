// Package docs_test keeps what is generated in these pages current. The pages
// lie as packer-sdc wants them; its own generator writes beside the folder
// "packer" of a checkout, which is where our components are.
package docs_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

//go:generate go test -run ^TestComponents$ . -update

var update = flag.Bool("update", false, "write what is generated anew")

// generated is a part of a page: the name of a struct, and its file.
var generated = regexp.MustCompile(`(?ms)^<!-- Code generated from the comments of the struct (\w+) in ([\w/.]+); DO NOT EDIT -->\n.*?^<!-- End of code generated -->$`)

// TestComponents compares the pages with the comments of what they describe.
func TestComponents(t *testing.T) {
	described := map[string]bool{}
	names, err := filepath.Glob("*/*.mdx")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		was := string(raw)
		now := generated.ReplaceAllStringFunc(was, func(part string) string {
			match := generated.FindStringSubmatch(part)
			described[path.Dir(match[2])] = true
			text, err := options(filepath.Join("..", match[2]), match[1])
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			begin, _, _ := strings.Cut(part, "\n")
			return begin + "\n\n" + text + "\n<!-- End of code generated -->"
		})
		if *update {
			if err := os.WriteFile(name, []byte(now), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if diff := cmp.Diff(was, now); diff != "" {
			t.Errorf("%s is not current, run `go generate ./docs` (-there +wanted):\n%s", name, diff)
		}
	}

	components, err := filepath.Glob("../packer/*/config.go")
	if err != nil || len(components) == 0 {
		t.Fatalf("no components: %v", err)
	}
	for _, file := range components {
		if dir := path.Join("packer", filepath.Base(filepath.Dir(file))); !described[dir] {
			t.Errorf("%s has no page", dir)
		}
	}
}

// options are the attributes and blocks of a configuration, as Markdown.
func options(file, structure string) (string, error) {
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		return "", err
	}
	object := parsed.Scope.Lookup(structure)
	if object == nil {
		return "", fmt.Errorf("%s has no %s", file, structure)
	}
	fields := object.Decl.(*ast.TypeSpec).Type.(*ast.StructType).Fields.List

	var required, optional []string
	for _, field := range fields {
		if field.Tag == nil || len(field.Names) == 0 {
			continue
		}
		tag := reflect.StructTag(strings.Trim(field.Tag.Value, "`"))
		name := tag.Get("mapstructure")
		if field.Doc == nil {
			return "", fmt.Errorf("%s: %s has no comment", structure, name)
		}
		kind, err := hclType(field.Type)
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", structure, name, err)
		}
		entry := fmt.Sprintf("- `%s` (%s) - %s\n", name, kind, indented(field.Doc.Text()))
		if tag.Get("required") == "true" {
			required = append(required, entry)
		} else {
			optional = append(optional, entry)
		}
	}
	var text strings.Builder
	for _, part := range []struct {
		heading string
		entries []string
	}{{"**Required:**", required}, {"**Optional:**", optional}} {
		if len(part.entries) == 0 {
			continue
		}
		// An output is not asked for anything.
		if structure != "Output" {
			text.WriteString(part.heading + "\n\n")
		}
		text.WriteString(strings.Join(part.entries, "\n") + "\n")
	}
	return strings.TrimSuffix(text.String(), "\n"), nil
}

// indented is a comment as the text of an entry of a list.
func indented(text string) string {
	var p comment.Parser
	printer := comment.Printer{TextWidth: -1}
	lines := strings.TrimSpace(string(printer.Text(p.Parse(text))))
	return strings.ReplaceAll(lines, "\n", "\n  ")
}

// hclType is what the documentation of Packer calls a type.
func hclType(e ast.Expr) (string, error) {
	switch e := e.(type) {
	case *ast.Ident:
		switch e.Name {
		case "string", "int":
			return e.Name, nil
		case "bool":
			return "boolean", nil
		}
		if e.IsExported() {
			return "block", nil
		}
	case *ast.SelectorExpr:
		switch e.Sel.Name {
		case "Trilean":
			return "boolean", nil
		case "Duration":
			return `duration string | ex: "1h5m2s"`, nil
		}
	case *ast.StarExpr: // tells 0 from what is left out
		return hclType(e.X)
	case *ast.ArrayType:
		of, err := hclType(e.Elt)
		if of == "block" {
			return "blocks", err
		}
		return "[]" + of, err
	}
	return "", errors.New("a type that this generator does not know")
}

// TestExamples has Packer check what a reader copies, with a plugin that carries
// xivo-firstboot as a released one does.
func TestExamples(t *testing.T) {
	packer := os.Getenv("XIVO_PACKER")
	if packer == "" {
		t.Skip("needs XIVO_PACKER, the path of Packer")
	}
	// Short: the plugin's socket is in it, and its path has room for 107 bytes.
	dir, err := os.MkdirTemp("", "xivo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	run := func(t *testing.T, argv ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_NO_COLOR=1", "TMPDIR="+dir,
			"PACKER_CONFIG_DIR="+filepath.Join(dir, "config"), "PACKER_PLUGIN_PATH="+filepath.Join(dir, "plugins"),
			"PKR_VAR_mesh_secret=seven small boats left harbour today")
		if strings.HasSuffix(argv[len(argv)-1], ".pkr.hcl") {
			cmd.Dir = dir
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
		}
	}
	write := func(name, content string) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		return name
	}
	embedded, err := filepath.Abs("../packer/embedded/linux_amd64/xivo-firstboot")
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{embedded: write("xivo-firstboot", "a stand-in")}})
	if err != nil {
		t.Fatal(err)
	}
	plugin := filepath.Join(dir, "packer-plugin-xivo")
	run(t, "go", "build", "-overlay="+write("overlay.json", string(overlay)), "-o", plugin, "../cmd/packer-plugin-xivo")
	run(t, packer, "plugins", "install", "--path", plugin, "github.com/xivo-mesh/xivo")
	write("debian-xivo.qcow2", "") // what the examples bake from

	example := regexp.MustCompile("(?ms)^```hcl\n(packer .*?^)```$")
	pages, err := filepath.Glob("*/*.mdx")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		t.Run(page, func(t *testing.T) {
			raw, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			examples := example.FindAllStringSubmatch(string(raw), -1)
			if len(examples) == 0 {
				t.Error("it has no example")
			}
			for _, match := range examples {
				template := write("example.pkr.hcl", match[1])
				run(t, packer, "fmt", "-check", "-diff", template)
				run(t, packer, "validate", template)
			}
		})
	}
	t.Run("the template for our builder", func(t *testing.T) {
		template, err := filepath.Abs("../packer/templates/nspawn/xivo.pkr.hcl")
		if err != nil {
			t.Fatal(err)
		}
		run(t, packer, "validate", "-var=source_image=debian-xivo.qcow2", template)
	})
}

// pages are the Markdown files of the project, those of this folder and of the
// folder above it.
func pages(t *testing.T) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*.md", "*/*.md", "*/*.mdx", "../*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	return names
}

func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// headings returns the headings of a page below its title, longest first.
func headings(t *testing.T, page string) (found []string) {
	t.Helper()
	for _, match := range regexp.MustCompile(`(?m)^##+ (.+)$`).FindAllStringSubmatch(read(t, page), -1) {
		found = append(found, match[1])
	}
	slices.SortFunc(found, func(a, b string) int { return len(b) - len(a) })
	return found
}

// anchor is how GitHub names a heading in a link.
func anchor(heading string) string {
	kept := strings.Map(func(r rune) rune {
		if r == ' ' {
			return '-'
		}
		if r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
	return "#" + kept
}

// TestLinks: no page points at a page or heading that is not there.
func TestLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	checked := 0
	for _, name := range pages(t) {
		for _, match := range link.FindAllStringSubmatch(read(t, name), -1) {
			checked++
			target := name
			if match[1] != "" {
				target = filepath.Join(filepath.Dir(name), match[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if at := match[2]; at != "" && !slices.ContainsFunc(headings(t, target), func(h string) bool { return anchor(h) == at }) {
				t.Errorf("%s: %s has no heading for %s", name, target, at)
			}
		}
	}
	if checked == 0 {
		t.Error("no link was found")
	}
}

// TestFactsThatCommentsName: a comment names a page of facts, and after a comma
// one of its headings: docs/xivo/consul.md, The KV.
func TestFactsThatCommentsName(t *testing.T) {
	reference := regexp.MustCompile(`docs/xivo/[\w-]+\.md`)
	wrapped := regexp.MustCompile(`\n[ \t]*(?://|#|--)?[ \t]*`)
	checked := 0
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name == filepath.Join("..", ".git") || name == filepath.Join("..", "dist") {
				return fs.SkipDir
			}
			return nil
		}
		switch filepath.Ext(name) {
		case ".go", ".service", ".sh", ".sql", ".tmpl":
		default:
			return nil
		}
		text := wrapped.ReplaceAllString(read(t, name), " ")
		for _, at := range reference.FindAllStringIndex(text, -1) {
			checked++
			page := filepath.Join("..", text[at[0]:at[1]])
			if _, err := os.Stat(page); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			rest, named := strings.CutPrefix(text[at[1]:], ", ")
			if !named || strings.HasPrefix(rest, "docs/") {
				continue
			}
			if !slices.ContainsFunc(headings(t, page), func(h string) bool { return begins(rest, h) }) {
				t.Errorf("%s: %s has no heading %.40q…", name, page, rest)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked == 0 {
		t.Error("no reference was found")
	}
}

// begins says whether a text begins with a heading, and not with a longer word.
func begins(text, heading string) bool {
	rest, ok := strings.CutPrefix(text, heading)
	next, _ := utf8.DecodeRuneInString(rest)
	return ok && !unicode.IsLetter(next) && !unicode.IsDigit(next)
}

// TestVersionsAreThoseOfTheCode: the table of the page and that of the code have
// the same boundaries, in the same order.
func TestVersionsAreThoseOfTheCode(t *testing.T) {
	boundaries := func(text string, row string) (found []string) {
		for _, match := range regexp.MustCompile(row).FindAllStringSubmatch(text, -1) {
			found = append(found, match[1])
		}
		return found
	}
	_, table, _ := strings.Cut(read(t, "xivo/versions.md"), "\n## The table of the code\n")
	table, _, _ = strings.Cut(table, "\n## ")
	want := boundaries(read(t, "../firstboot/platform/traits.go"), `(?m)^\t\{"(\d+\.\d+)", "`)
	if len(want) < 10 {
		t.Fatalf("traits.go has the rows %v", want)
	}
	if diff := cmp.Diff(want, boundaries(table, `(?m)^\| (\d+\.\d+) \|`)); diff != "" {
		t.Errorf("xivo/versions.md is not firstboot/platform/traits.go (-code +page):\n%s", diff)
	}
}
