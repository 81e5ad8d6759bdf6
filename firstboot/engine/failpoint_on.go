//go:build failpoints

package engine

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// failpoint kills this process, with no chance to clean up, at a boundary that
// the file named by $ENGINE_FAILPOINTS lists, a line each:
// PHASE.STEP:BOUNDARY, or PHASE.STEP:BOUNDARY+DURATION for some time after it.
// The line is struck out first, so that the next run comes further.
func failpoint(step string, b boundary) {
	file := os.Getenv("ENGINE_FAILPOINTS")
	if file == "" {
		return
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	here := step + ":" + string(b)
	lines := strings.Fields(string(raw))
	i := slices.IndexFunc(lines, func(line string) bool {
		return line == here || strings.HasPrefix(line, here+"+")
	})
	if i < 0 {
		return
	}
	_, after, _ := strings.Cut(lines[i], "+")
	rest := strings.Join(slices.Delete(lines, i, i+1), "\n")
	if err := os.WriteFile(file, []byte(rest), 0o600); err != nil {
		panic(err)
	}
	if after == "" {
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	d, err := time.ParseDuration(after)
	if err != nil {
		panic(err)
	}
	time.AfterFunc(d, func() { syscall.Kill(os.Getpid(), syscall.SIGKILL) })
}
