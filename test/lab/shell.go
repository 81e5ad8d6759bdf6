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

// Published is the place where Shell finds the machines of one process. One
// process has it at a time, until Release or until it ends.
type Published struct{ file *os.File }

// published is what its file holds.
type published struct {
	PID    int
	Shells map[string][]string // for each name, the command that opens a shell
}

// Reserve takes the place for this process, which has no machines yet.
func Reserve() (*Published, error) {
	name, err := shellFile()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// The lock says that what is in the file is true: the kernel drops it with
	// the process.
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		var other published
		_ = json.NewDecoder(f).Decode(&other) // without it, the process is 0
		return nil, fmt.Errorf("another demo keeps its machines running, or is about to (process %d): end it first, with Ctrl-C in its terminal (%w)", other.PID, err)
	}
	p := &Published{f}
	if err := p.write(published{PID: os.Getpid()}); err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

// Announce tells Shell the commands that open shells, by the machines' names.
func (p *Published) Announce(shells map[string][]string) error {
	return p.write(published{PID: os.Getpid(), Shells: shells})
}

func (p *Published) write(content published) error {
	raw, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if err := p.file.Truncate(0); err != nil {
		return err
	}
	_, err = p.file.WriteAt(raw, 0)
	return err
}

// Release lets another process have the place.
func (p *Published) Release() {
	os.Remove(p.file.Name())
	p.file.Close()
}

// Shell becomes the shell that a running process announced under a name. It
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
	var running published
	if err := json.NewDecoder(f).Decode(&running); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if len(running.Shells) == 0 {
		return fmt.Errorf("the machines of process %d are not up yet: wait until it says that they run", running.PID)
	}
	argv := running.Shells[name]
	if len(argv) == 0 {
		return fmt.Errorf("there is no node %s: the nodes are numbered from 1 to %d", name, len(running.Shells))
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
