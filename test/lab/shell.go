package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// Publish lets Shell find machines of this process: for each name the command
// that opens a shell. It lasts until release is called, or this process ends.
func Publish(commands map[string][]string) (release func(), err error) {
	name, err := shellFile()
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// The lock says that what is in the file is true: the kernel drops it with
	// the process.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another demo keeps its machines: end it first (%w)", err)
	}
	if err = f.Truncate(0); err == nil {
		err = json.NewEncoder(f).Encode(commands)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { os.Remove(name); f.Close() }, nil
}

// Shell becomes the shell that a running process published under a name. It
// returns only when that fails.
func Shell(name string) error {
	none := errors.New("no machines are running: start them with `make demo KEEP=1` in another terminal")
	file, err := shellFile()
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return none
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err == nil {
		return none
	}
	var commands map[string][]string
	if err := json.NewDecoder(f).Decode(&commands); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	argv := commands[name]
	if len(argv) == 0 {
		return fmt.Errorf("there is no node %s: the nodes are numbered from 1 to %d", name, len(commands))
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return err
	}
	return syscall.Exec(path, argv, []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=" + os.Getenv("TERM"),
	})
}

func shellFile() (string, error) {
	dir, err := cache.Dir()
	return filepath.Join(dir, "running.json"), err
}
