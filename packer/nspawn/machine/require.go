package machine

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Tool is a program of the host and the Debian package that has it.
type Tool struct {
	Name    string // a command, or an absolute path that has to exist
	Package string
}

// The programs that this package runs.
var (
	Nsenter = Tool{"nsenter", "util-linux"}
	Mount   = Tool{"mount", "mount"}
	IP      = Tool{"ip", "iproute2"}
	Nspawn  = Tool{"systemd-nspawn", "systemd-container"}
	Slirp   = Tool{"slirp4netns", "slirp4netns"}
)

// Require returns an error that names every program that is missing, and the
// one command that installs them.
func Require(tools ...Tool) error {
	var names, packages []string
	for _, tool := range tools {
		var err error
		if strings.HasPrefix(tool.Name, "/") {
			_, err = os.Stat(tool.Name)
		} else {
			_, err = exec.LookPath(tool.Name)
		}
		if err != nil {
			names = append(names, tool.Name)
			packages = append(packages, tool.Package)
		}
	}
	if names == nil {
		return nil
	}
	return fmt.Errorf("not found on this host: %s; on Debian: apt-get install %s",
		strings.Join(names, ", "), strings.Join(packages, " "))
}
