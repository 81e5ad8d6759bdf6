package firstboot

import statefiles "github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"

// writePrivate writes a file of our own state.
func writePrivate(name string, data []byte) error {
	return statefiles.WriteFile(name, data, statefiles.Private())
}
