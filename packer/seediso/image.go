package seediso

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
)

// volume is the label by which cloud-init's NoCloud finds a seed. Newer releases
// take it in capitals as well; every release takes this.
const volume = "cidata"

// sectorSize is the one that CD-ROMs have.
const sectorSize = 2048

// writeImage writes a NoCloud seed as an ISO 9660 image that only its owner
// may read, and replaces an earlier one by renaming: a running machine goes on
// reading the earlier one.
//
// The names of the files need Rock Ridge: plain ISO 9660 has no dash and no
// small letters.
func writeImage(name string, node cloudinit.SeedNode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write seed %s: %w", name, err)
		}
	}()
	// Beside the seed rather than in /tmp: it holds the secret.
	work, err := os.MkdirTemp(filepath.Dir(name), ".seed-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()

	files, image := filepath.Join(work, "files"), filepath.Join(work, "image")
	if err := cloudinit.Seed(files, node); err != nil {
		return err
	}
	f, err := os.OpenFile(image, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	fs, err := iso9660.Create(file.New(f, false), 0, 0, sectorSize, files)
	if err == nil {
		err = fs.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: volume})
	}
	if err == nil {
		err = pad(f)
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(image, name)
}

// pad fills the last sector up: a hypervisor may cut a disk or CD-ROM off at the
// last whole sector.
func pad(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate((st.Size() + sectorSize - 1) / sectorSize * sectorSize)
}
