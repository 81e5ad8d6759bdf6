// Package embedded holds the Linux builds of xivo-firstboot that the plugin
// carries. They are put beside this file, as linux_<architecture>/xivo-firstboot,
// before the plugin is built; in a plain `go build` there are none.
package embedded

import (
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// This file matches too, so that the pattern always matches something.
//
//go:embed *
var files embed.FS

// Firstboot returns the build of xivo-firstboot for a Go architecture (amd64,
// 386, arm64). The error names those that there are.
func Firstboot(arch string) ([]byte, error) { return firstboot(files, arch) }

func firstboot(files fs.FS, arch string) ([]byte, error) {
	binary, err := fs.ReadFile(files, "linux_"+arch+"/xivo-firstboot")
	if err == nil {
		return binary, nil
	}
	if found := architectures(files); len(found) > 0 {
		return nil, fmt.Errorf("this plugin carries xivo-firstboot for %s only, not for %s: set firstboot_binary", strings.Join(found, ", "), arch)
	}
	return nil, fmt.Errorf("this plugin was built without xivo-firstboot: set firstboot_binary to a static Linux build of it for %s", arch)
}

// Architectures are those that Firstboot has a build for, sorted.
func Architectures() []string { return architectures(files) }

func architectures(files fs.FS) []string {
	found, _ := fs.Glob(files, "linux_*/xivo-firstboot") // only a bad pattern fails
	for i, name := range found {
		found[i], _, _ = strings.Cut(strings.TrimPrefix(name, "linux_"), "/")
	}
	slices.Sort(found)
	return found
}
