package cloudinit

import (
	"bufio"
	"embed"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// BinaryPath is where the units expect xivo-firstboot. A baked image has it and
// the units where the Debian package has them, which therefore upgrades both.
const BinaryPath = "/usr/sbin/xivo-firstboot"

const (
	// unitDir is where packages put their units; /usr/lib is not looked at by
	// every Debian that XiVO ran on.
	unitDir = "/lib/systemd/system"
	// enabledDir is where systemd keeps what is enabled.
	enabledDir = "/etc/systemd/system"
)

//go:embed image
var image embed.FS

// File is one file that a baked image needs.
type File struct {
	// Path is absolute.
	Path    string
	Mode    fs.FileMode
	Content []byte
}

// ImageFiles returns the files that a baked image needs besides the program
// itself at BinaryPath, sorted by path: the systemd units, cloud-init's
// settings, and what `cloud-init clean` runs. Their owner is root.
func ImageFiles() []File {
	var files []File
	err := fs.WalkDir(image, "image", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := image.ReadFile(name)
		if err != nil {
			return err
		}
		f := File{Path: strings.TrimPrefix(name, "image"), Mode: 0o644, Content: content}
		if strings.HasPrefix(f.Path, "/etc/cloud/clean.d/") {
			// cloud-init runs what is executable there, and nothing else.
			f.Mode = 0o755
		}
		files = append(files, f)
		return nil
	})
	if err != nil {
		// Embedded files can always be read.
		panic(err)
	}
	return files
}

// Units returns the names of the units to enable, in the order of a boot.
func Units() []string {
	return []string{"xivo-firstboot.service", "xivo-overlay-address.service", "xivo-overlay.service", "xivo-firstboot-settle.service", "xivo-mesh.service"}
}

// Link is a symbolic link that enables a unit.
type Link struct {
	// Path is where the link stands, Target what it says; both are absolute.
	Path, Target string
}

// Links returns what `systemctl enable` of Units makes, for where it cannot be
// run: a mounted image. They follow from the units' [Install] sections.
func Links() []Link {
	var links []Link
	for _, f := range ImageFiles() {
		if !slices.Contains(Units(), path.Base(f.Path)) {
			continue
		}
		unit := parseUnit(string(f.Content))
		for key, suffix := range map[string]string{"Install.RequiredBy": ".requires", "Install.WantedBy": ".wants"} {
			for _, by := range unit[key] {
				links = append(links, Link{path.Join(enabledDir, by+suffix, path.Base(f.Path)), f.Path})
			}
		}
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	return links
}

// parseUnit returns the words of every setting, as "Section.Key". It reads what
// our own units use of the format: no quotes, no continued lines, no resets.
func parseUnit(text string) map[string][]string {
	settings := map[string][]string{}
	section := ""
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if name, ok := strings.CutPrefix(line, "["); ok {
			section = strings.TrimSuffix(name, "]")
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			name := section + "." + key
			settings[name] = append(settings[name], strings.Fields(value)...)
		}
	}
	return settings
}
