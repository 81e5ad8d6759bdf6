package remains

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// InMemory is an error where a file of this name would be on a disk: what is written
// there may be read from an image of it, whatever becomes of the file.
func InMemory(name string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(name), &st); err != nil {
		return fmt.Errorf("%s: %w", filepath.Dir(name), err)
	}
	if kind := uint32(st.Type); kind != unix.TMPFS_MAGIC && kind != unix.RAMFS_MAGIC {
		return fmt.Errorf("%s is on a disk, so the image would hold the values for which it is to be searched: name a file below /run, and fetch it from there", name)
	}
	return nil
}

// Write writes the values into a file in memory that nobody but root may read. Those
// that an earlier seal wrote there stay: it may have been cut off after it had taken
// them out of the machine.
func (v Values) Write(name string) error {
	if err := InMemory(name); err != nil {
		return err
	}
	all := v
	switch raw, err := limit.ReadFile(name, limit.File); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		earlier, err := Decode(bytes.NewReader(raw))
		if err != nil {
			return fmt.Errorf("%s is there: %w; remove it, and seal again", name, err)
		}
		earlier.AddAll(v)
		all = earlier
	}
	raw, err := all.Encode()
	if err != nil {
		return err
	}
	return files.WriteFile(name, raw, files.Private())
}
