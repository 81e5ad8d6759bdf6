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
// its folder. The temporary name starts with a dot and has no ending that a
// conf.d reads. What a try that was cut off left under such a name, which may
// hold secrets, is taken away.
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

	beside := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".xivo-firstboot-")
	if err := removeAbandoned(beside); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(beside)+"*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	// Until it has its name; see removeAbandoned.
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err
	}
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
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// removeAbandoned removes the files whose names begin like that, but those that
// another process is writing: it has them locked, and the kernel unlocks those
// of a dead one.
func removeAbandoned(prefix string) error {
	names, err := filepath.Glob(prefix + "*")
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			continue // renamed meanwhile
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			err = os.Remove(name)
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
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
