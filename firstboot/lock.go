package firstboot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrBusy is what Lock says while another process works on the node.
var ErrBusy = errors.New("busy")

// Lock makes this process the one that may change the node. The kernel gives
// the lock back when the process ends, however it ends.
func (n *Node) Lock() error {
	name := n.Platform.Path(lockFile)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		holder, _ := os.ReadFile(name)
		f.Close()
		return fmt.Errorf("%w: another xivo-firstboot is at work (pid %s): wait for it, or see `xivo-firstboot status`", ErrBusy, strings.TrimSpace(string(holder)))
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("lock %s: %w", name, err)
	}
	if err := f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	n.lock = f
	return err
}
