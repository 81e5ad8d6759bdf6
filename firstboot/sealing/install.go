package sealing

import (
	"context"
	"os"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// installStep puts our first boot into the image.
const installStep = "units"

// Installed is this program and its units being on the machine, and enabled for the
// next boot: links, and no reload, so that nothing holds a running XiVO.
func Installed(n *node.Node) (engine.Resource, error) {
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	root := n.Platform.Root
	rs := engine.All{files.Present(root, cloudinit.BinaryPath, binary, 0o755)}
	for _, f := range cloudinit.ImageFiles() {
		rs = append(rs, files.Present(root, f.Path, f.Content, f.Mode))
	}
	for _, l := range cloudinit.Links() {
		rs = append(rs, files.Link(root, l.Path, l.Target))
	}
	return rs, nil
}

func install(_ context.Context, n *node.Node) (engine.Resource, error) { return Installed(n) }

// installedFiles are the paths of what Installed puts into the image, links not
// counted.
func installedFiles() []string {
	paths := []string{cloudinit.BinaryPath}
	for _, f := range cloudinit.ImageFiles() {
		paths = append(paths, f.Path)
	}
	return paths
}
