package templates_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// QEMU is a stand-in here: KVM that works and KVM that does not are not to be had
// on one machine.
func TestQEMURunsOnKVMOnlyIfAGuestDoes(t *testing.T) {
	const won, slow = "exit 33", "sleep 2; exit 33"
	for _, tc := range []struct{ name, kvm, tcg, want string }{
		{"a guest is faster under KVM", won, slow, "kvm"},
		{"KVM does not open", "exit 1", won, "tcg"},
		{"a guest hangs under KVM", "exec sleep 20", won, "tcg"},
		{"a guest crawls under KVM", slow, won, "tcg"},
		{"a guest crashes under KVM", "kill -ABRT $$", won, "tcg"},
		{"neither works: QEMU itself will say why", "exit 1", "exit 1", "tcg"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			qemu := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in\n*kvm*isa-debug-exit*) %s ;;\n*isa-debug-exit*) %s ;;\n*) echo \"$@\" ;;\nesac\n", tc.kvm, tc.tcg)
			if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(qemu), 0o755); err != nil {
				t.Fatal(err)
			}
			for _, run := range []struct {
				args []string
				want string
			}{
				{nil, tc.want},
				{[]string{"-m", "2048"}, "-accel " + tc.want + " -m 2048"},
				{[]string{"-version"}, "-version"},
			} {
				cmd := exec.CommandContext(t.Context(), "qemu/qemu.sh", run.args...)
				cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "TMPDIR="+dir)
				out, err := cmd.CombinedOutput()
				if err != nil || string(out) != run.want+"\n" {
					t.Errorf("qemu.sh %q: %q, %v; want %q", run.args, out, err, run.want)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "tmp.*")); len(left) > 0 {
				t.Errorf("it left %s", left)
			}
		})
	}
}
