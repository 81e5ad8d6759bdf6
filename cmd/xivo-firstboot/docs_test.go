package main

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	plugin "github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

//go:generate go test -run ^TestDocumentation$ . -update

var update = flag.Bool("update", false, "write docs/cli and docs/man anew")

// TestDocumentation compares docs/cli and docs/man with the command line.
func TestDocumentation(t *testing.T) {
	for dir, generate := range map[string]func(dir string) error{
		"../../docs/cli": markdown,
		"../../docs/man": manual,
	} {
		generated := t.TempDir()
		if err := generate(generated); err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(dir, os.DirFS(generated)); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(contents(t, dir), contents(t, generated)); diff != "" {
			t.Errorf("%s is not current, run `go generate ./cmd/xivo-firstboot` (-there +wanted):\n%s", dir, diff)
		}
	}
}

// documented is the command line, the same today as tomorrow.
func documented() *cobra.Command {
	cmd := new(cli).command()
	cmd.DisableAutoGenTag = true              // it has today's date
	cmd.Long = "```\n" + cmd.Long + "\n```\n" // a table
	return cmd
}

func markdown(dir string) error { return doc.GenMarkdownTree(documented(), dir) }

func manual(dir string) error {
	header := &doc.GenManHeader{
		Section: "8",
		Source:  "xivo-firstboot " + plugin.Version.String(),
		Manual:  "XiVO mesh",
		Date:    new(time.Time),
	}
	if err := doc.GenManTree(documented(), header, dir); err != nil {
		return err
	}
	// A page is as old as the version that it names.
	names, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		return err
	}
	for _, name := range names {
		page, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		page = bytes.Replace(page, []byte(`"Jan 0001"`), []byte(`""`), 1)
		if err := os.WriteFile(name, page, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// contents are the files of a folder by their names.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	tree := os.DirFS(dir)
	names, err := fs.Glob(tree, "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		raw, err := fs.ReadFile(tree, name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(raw)
	}
	return files
}
