package nspawn

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// aptDir is where a machine has the cache, in its /run, which no image has.
const aptDir = "/run/packer-apt"

// aptConf makes apt keep what it downloads, which apt-get does by itself and apt
// does not. The folder is root's, so root downloads.
const aptConf = `Dir::Cache::Archives "` + aptDir + `/archives";
APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
APT::Sandbox::User "root";
`

// aptCache makes a folder of the host, if it is missing, and returns what a machine
// needs to use it as apt's cache: what to bind, and the environment of apt. The
// image's own configuration of apt stays as it is.
func aptCache(sandbox *machine.Sandbox, folder string) (binds []machine.Bind, environment []string, err error) {
	if err := os.MkdirAll(filepath.Join(folder, "partial"), 0o755); err != nil {
		return nil, nil, fmt.Errorf("apt_cache: %w", err)
	}
	const conf = "/run/apt.conf"
	if err := os.WriteFile(sandbox.Path(conf), []byte(aptConf), 0o644); err != nil {
		return nil, nil, fmt.Errorf("apt_cache: %w", err)
	}
	return []machine.Bind{
		{Source: folder, Target: aptDir + "/archives"},
		{Source: conf, Target: aptDir + "/apt.conf", ReadOnly: true},
	}, []string{"APT_CONFIG=" + aptDir + "/apt.conf"}, nil
}
