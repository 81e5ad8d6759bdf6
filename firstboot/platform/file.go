package platform

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces a file beside itself: written, synced, renamed. An
// existing file keeps its owner and mode; a new one gets mode and the owner of
// its folder. The temporary name starts with a dot, so no conf.d reads it.
func WriteFile(name string, data []byte, mode fs.FileMode) (err error) {
	uid, gid := -1, -1
	if st, err := os.Stat(name); err == nil {
		mode = st.Mode().Perm()
		uid, gid = owner(st)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if st, err := os.Stat(filepath.Dir(name)); err == nil {
		uid, gid = owner(st)
	}

	f, err := os.CreateTemp(filepath.Dir(name), ".xivo-firstboot-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(mode); err != nil {
		return err
	}
	if err = f.Chown(uid, gid); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func owner(st fs.FileInfo) (uid, gid int) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid), int(s.Gid)
	}
	return -1, -1
}
