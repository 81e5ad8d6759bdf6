package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// path is where the tools are.
const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// boot is what runs first in a virtual machine: it tries everything and switches off.
func boot() error {
	err := errors.Join(
		unix.Mount("proc", "/proc", "proc", 0, ""),
		unix.Mount("sysfs", "/sys", "sysfs", 0, ""),
		unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""),
	)
	console, e := os.OpenFile("/dev/ttyS0", os.O_RDWR, 0)
	if err = errors.Join(err, e); err == nil {
		load("/modules", console)
		cmd := exec.Command("/proc/self/exe", "try")
		cmd.Env = append(os.Environ(), path, "VIRTUAL=1") // the kernel hands on what it was booted with
		cmd.Stdout, cmd.Stderr = console, console
		if err = cmd.Run(); err != nil {
			fmt.Fprintln(console, "FAIL the trial ended:", err)
		}
	}
	// Where there is no console to tell it on, the test finds the end of QEMU. What is
	// still on its way to the console would be lost.
	if console != nil {
		const drain = 1
		err = errors.Join(err, unix.IoctlSetInt(int(console.Fd()), unix.TCSBRK, drain))
	}
	return errors.Join(err, unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}

// load puts modules into the kernel, each after those that it needs: it is tried again
// as long as one more goes in.
func load(dir string, log *os.File) {
	left, _ := filepath.Glob(filepath.Join(dir, "*.ko"))
	for {
		var failed []string
		var why error
		for _, name := range left {
			image, err := os.ReadFile(name)
			if err == nil {
				err = unix.InitModule(image, "")
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				failed, why = append(failed, name), err
			}
		}
		if len(failed) == 0 || len(failed) == len(left) {
			for _, name := range failed {
				fmt.Fprintln(log, "not loaded:", name, why)
			}
			return
		}
		left = failed
	}
}

// complaints are what the kernel logged of something that is wrong with it.
func complaints() ([]string, error) {
	const readAll = 3
	buf := make([]byte, 1<<20)
	n, _, errno := unix.Syscall(unix.SYS_SYSLOG, readAll, uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)))
	if errno != 0 {
		return nil, errno
	}
	var bad []string
	for line := range strings.Lines(string(buf[:n])) {
		for _, word := range []string{"WARNING:", "BUG:", "Oops", "Call Trace", "page allocation failure", "segfault", "soft lockup"} {
			if strings.Contains(line, word) {
				bad = append(bad, strings.TrimSpace(line))
			}
		}
	}
	return bad, nil
}
