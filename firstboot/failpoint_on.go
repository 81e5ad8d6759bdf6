//go:build failpoints

package firstboot

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
)

// failpoint kills this process, with no chance to clean up, at a boundary that
// the file named by $XIVO_FIRSTBOOT_FAILPOINTS lists, a line each:
// PHASE.STEP:BOUNDARY. It strikes the line out first: the next run comes further.
func failpoint(step string, b boundary) {
	file := os.Getenv("XIVO_FIRSTBOOT_FAILPOINTS")
	if file == "" {
		return
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	lines := strings.Fields(string(raw))
	here := fmt.Sprintf("%s:%s", step, b)
	i := slices.Index(lines, here)
	if i < 0 {
		return
	}
	rest := strings.Join(slices.Delete(lines, i, i+1), "\n")
	if err := os.WriteFile(file, []byte(rest), 0o600); err != nil {
		panic(err)
	}
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}
