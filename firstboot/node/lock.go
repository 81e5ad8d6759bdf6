package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// lockWait is longer than a pass of the watch, also of one that waits in vain for
// the servers of this machine and for dead peers.
const lockWait = 3 * time.Minute

// ErrBusy is what Lock says while another process works on the node.
var ErrBusy = errors.New("busy")

// Lock makes this process the one that may change the node. The kernel gives
// the lock back when the process ends, however it ends, and knows who has it:
// nothing that was written down can be stale. What another process did since
// Open is read again: two that start together decide on one identity.
func (n *Node) Lock() error {
	name := n.Platform.Path(LockFile)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK})
	if errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES) {
		err = fmt.Errorf("%w: another xivo-firstboot is at work%s: wait for it, or see `xivo-firstboot status`", ErrBusy, holder(f))
		f.Close()
		return err
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("lock %s: %w", name, err)
	}
	n.lock = f
	if n.Journal, err = readJournal(n.Platform.Path(journalFile)); err != nil {
		n.Unlock()
	}
	return err
}

// LockWait is Lock for a person: it waits until the other process is done with
// what it does now, 3 min at most, and says after a moment that it waits.
func (n *Node) LockWait(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for tries := 1; ; tries++ {
		err := n.Lock()
		if !errors.Is(err, ErrBusy) {
			return err
		}
		if tries == 10 {
			n.Log.Info("waiting, 3 min at most", "why", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-again.C:
		}
	}
}

// Unlock gives the lock back.
func (n *Node) Unlock() {
	if n.lock != nil {
		n.lock.Close()
		n.lock = nil
	}
}

// holder tells of the process that has the lock; "" when it just ended.
func holder(f *os.File) string {
	lock := syscall.Flock_t{Type: syscall.F_WRLCK}
	if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &lock); err != nil || lock.Type == syscall.F_UNLCK {
		return ""
	}
	// No secret is ever in an argument of ours.
	command, _ := limit.ReadFile(fmt.Sprintf("/proc/%d/cmdline", lock.Pid), limit.File)
	return fmt.Sprintf(" (pid %d: %s)", lock.Pid, strings.TrimSpace(strings.ReplaceAll(string(command), "\x00", " ")))
}
