// Package bench measures what the README and the notes claim.
package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// BenchmarkFirstbootStart is the start of the first-boot binary, as released:
// what it adds to every boot even when there is nothing to do. It reports the
// binary's size as well.
func BenchmarkFirstbootStart(b *testing.B) {
	binary := filepath.Join(b.TempDir(), "xivo-firstboot")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "github.com/xivo-mesh/packer-plugin-xivo/cmd/xivo-firstboot")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	st, err := os.Stat(binary)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := exec.Command(binary, "version").Run(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(st.Size())/(1<<20), "MiB")
}
