package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

// architecture is one that XiVO's machines have, as Go and as Debian call it.
type architecture struct{ golang, debian string }

var architectures = []architecture{{"amd64", "amd64"}, {"386", "i386"}}

// firstboot is where the plugin embeds the build of xivo-firstboot from.
func (a architecture) firstboot() string {
	return filepath.Join("packer/embedded", "linux_"+a.golang, "xivo-firstboot")
}

// debianConfig is what nfpm reads: as YAML, which JSON is as well.
type debianConfig struct {
	Name        string            `json:"name"`
	Arch        string            `json:"arch"`
	Version     string            `json:"version"`
	Schema      string            `json:"version_schema"`
	Section     string            `json:"section"`
	Priority    string            `json:"priority"`
	Maintainer  string            `json:"maintainer"`
	Homepage    string            `json:"homepage"`
	Description string            `json:"description"`
	Recommends  []string          `json:"recommends"`
	MTime       time.Time         `json:"mtime"`
	Scripts     map[string]string `json:"scripts"`
	Contents    []debianFile      `json:"contents"`
}

// debianFile is a file, or a link whose target is Source.
type debianFile struct {
	Source string         `json:"src"`
	Path   string         `json:"dst"`
	Type   string         `json:"type,omitempty"`
	Info   debianFileInfo `json:"file_info"`
}

type debianFileInfo struct {
	Mode  fs.FileMode `json:"mode,omitempty"`
	MTime time.Time   `json:"mtime"`
}

const debianDescription = `make a XiVO a node of a mesh
Nodes of a mesh share their contacts and live statuses. A node that boots takes
on an identity and joins the others, as its cloud-init user data say; on a XiVO
that nobody asked to change, nothing is changed.`

//go:embed debian
var debianScripts embed.FS

// packDebian builds the package of xivo-firstboot: what the seal puts into an
// image, at the same places, with man pages and completions.
func (r *release) packDebian(ctx context.Context, arch architecture) error {
	dir := filepath.Join(r.tmp, arch.debian)
	p := &debianPackage{dir: dir, date: r.date, config: newDebianConfig(arch, r.date)}
	for _, add := range []func() error{
		func() error { return p.copy(cloudinit.BinaryPath, 0o755, arch.firstboot()) },
		p.image,
		p.manual,
		func() error { return p.completions(ctx, r.native) },
		func() error { return p.copy("/usr/share/doc/xivo-firstboot/copyright", 0o644, "LICENSE") },
		func() error { return p.compressed("/usr/share/doc/xivo-firstboot/changelog.gz", "CHANGELOG.md") },
		p.scripts,
	} {
		if err := add(); err != nil {
			return err
		}
	}
	config, err := json.Marshal(p.config)
	if err != nil {
		return err
	}
	name := filepath.Join(dir, "nfpm.json")
	if err := os.WriteFile(name, config, 0o644); err != nil {
		return err
	}
	deb := fmt.Sprintf("xivo-firstboot_%s_%s.deb", p.config.Version, arch.debian)
	fmt.Fprintln(r.log, "packing", deb)
	return r.finish(exec.CommandContext(ctx, "go", "-C", "test/tools/nfpm", "tool", "nfpm",
		"package", "--packager=deb", "--config="+name, "--target="+filepath.Join(r.out, deb)))
}

// newDebianConfig describes the package, without what is in it.
func newDebianConfig(arch architecture, date time.Time) debianConfig {
	return debianConfig{
		Name: "xivo-firstboot", Arch: arch.debian, Schema: "none",
		// A prerelease sorts before its release.
		Version:     strings.ReplaceAll(version.Version.String(), "-", "~"),
		Section:     "admin",
		Priority:    "optional",
		Maintainer:  "packer-plugin-xivo maintainers <xivo-mesh@localhost>",
		Homepage:    "https://github.com/xivo-mesh/packer-plugin-xivo",
		Description: debianDescription,
		Recommends:  []string{"cloud-init"},
		MTime:       date,
		Scripts:     map[string]string{},
	}
}

// debianPackage collects what goes into a package.
type debianPackage struct {
	dir    string // its files, below files/
	date   time.Time
	config debianConfig
}

// add puts a file into the package.
func (p *debianPackage) add(path string, mode fs.FileMode, content []byte) error {
	source := filepath.Join(p.dir, "files", path)
	if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(source, content, mode); err != nil {
		return err
	}
	kind := ""
	if strings.HasPrefix(path, "/etc/") {
		kind = "config" // what an administrator changed stays
	}
	p.config.Contents = append(p.config.Contents, debianFile{source, path, kind, debianFileInfo{mode, p.date}})
	return nil
}

func (p *debianPackage) copy(path string, mode fs.FileMode, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return p.add(path, mode, content)
}

func (p *debianPackage) compressed(path, from string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	w, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return p.add(path, 0o644, packed.Bytes())
}

// image adds what every image has.
func (p *debianPackage) image() error {
	for _, f := range cloudinit.ImageFiles() {
		if err := p.add(f.Path, f.Mode, f.Content); err != nil {
			return err
		}
	}
	for _, l := range cloudinit.Links() {
		p.config.Contents = append(p.config.Contents, debianFile{l.Target, l.Path, "symlink", debianFileInfo{MTime: p.date}})
	}
	return nil
}

func (p *debianPackage) manual() error {
	pages, err := filepath.Glob("docs/man/*.8")
	if err != nil || len(pages) == 0 {
		return fmt.Errorf("no man page in docs/man (%v): run make generate", err)
	}
	for _, page := range pages {
		if err := p.compressed("/usr/share/man/man8/"+filepath.Base(page)+".gz", page); err != nil {
			return err
		}
	}
	return nil
}

// completions adds what the program itself says to complete.
func (p *debianPackage) completions(ctx context.Context, program string) error {
	for _, c := range []struct{ shell, path string }{
		{"bash", "/usr/share/bash-completion/completions/xivo-firstboot"},
		{"fish", "/usr/share/fish/vendor_completions.d/xivo-firstboot.fish"},
		{"zsh", "/usr/share/zsh/vendor-completions/_xivo-firstboot"},
	} {
		script, err := exec.CommandContext(ctx, program, "completion", c.shell).Output()
		if err != nil {
			return fmt.Errorf("the completion for %s: %w", c.shell, err)
		}
		if err := p.add(c.path, 0o644, script); err != nil {
			return err
		}
	}
	return nil
}

// scripts adds what dpkg runs.
func (p *debianPackage) scripts() error {
	scripts, err := template.ParseFS(debianScripts, "debian/*")
	if err != nil {
		return err
	}
	for name, nfpmName := range map[string]string{"postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"} {
		var text bytes.Buffer
		if err := scripts.ExecuteTemplate(&text, name, strings.Join(cloudinit.Units(), " ")); err != nil {
			return err
		}
		file := filepath.Join(p.dir, name)
		if err := os.WriteFile(file, text.Bytes(), 0o755); err != nil {
			return err
		}
		p.config.Scripts[nfpmName] = file
	}
	return nil
}
