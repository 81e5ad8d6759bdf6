package scenario

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the kernel's clock in which systemd tells when a unit changed.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}
