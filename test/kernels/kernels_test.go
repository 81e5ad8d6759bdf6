package kernels

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// hang is how long a guest may say nothing: it tells each step, of which the longest
// sends a hundred megabytes through two emulated ends.
const hang = 6 * time.Minute

// releases are what XIVO_KERNELS names, like "wheezy/amd64 wheezy/i386 jessie"; with
// "1" the oldest that Debian keeps with the others, in both architectures.
func releases(t *testing.T) []release {
	t.Helper()
	text := os.Getenv("XIVO_KERNELS")
	if text == "" {
		t.Skip("runs old kernels, with root: run make test-kernels")
	}
	if text == "1" {
		text = "bullseye/amd64 bullseye/i386"
	}
	var all []release
	for word := range strings.FieldsSeq(text) {
		r, err := parseRelease(word)
		if err != nil {
			t.Fatal("XIVO_KERNELS: ", err)
		}
		all = append(all, r)
	}
	return all
}

// TestKernels boots kernels in QEMU, with what their Debian had of ip and iptables, and
// runs the network between computers inside.
func TestKernels(t *testing.T) {
	all := releases(t)
	maker, err := recipe.New(os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if err := maker.VMHost(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		for _, variant := range []struct{ name, options string }{
			{"", ""},
			{" without IPv6", " ipv6.disable=1 MEGABYTES=5"},
		} {
			t.Run(r.String()+variant.name, func(t *testing.T) {
				unpacked, root := prepare(t, r, r.goArch())
				kernel, err := vmlinuz(unpacked)
				if err != nil {
					t.Fatal(err)
				}
				initramfs := filepath.Join(t.TempDir(), "initramfs")
				if err := pack(root, initramfs); err != nil {
					t.Fatal(err)
				}
				watch(t, exec.CommandContext(t.Context(), "nice", "-n", "15", "qemu-system-x86_64",
					"-accel", "tcg,tb-size=128", "-cpu", "Nehalem", "-smp", "1", "-m", "1024",
					"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "stdio",
					"-kernel", kernel, "-initrd", initramfs,
					"-append", "console=ttyS0 quiet panic=-1 rdinit=/guest"+variant.options))
			})
		}
	}
}

// TestInterfacesOfOldKernels runs the same with this machine's kernel, less the system
// calls and options that an old one did not have. That is what a kernel offers, and not
// how it behaves; it is fast, and it has those of which no package can be had.
func TestInterfacesOfOldKernels(t *testing.T) {
	r := releases(t)[0]
	for _, arch := range []string{"amd64", "386"} {
		for _, kernel := range []string{"3.2", "3.16", "4.9"} {
			t.Run(kernel+" "+arch, func(t *testing.T) {
				_, root := prepare(t, r, arch)
				watch(t, exec.CommandContext(t.Context(), "nice", "-n", "15", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child",
					"sh", "-ec", `mount --bind "$1" "$1"; mount -t proc proc "$1/proc"; mount --rbind /dev "$1/dev"; exec chroot "$@"`, "sh",
					root, "/guest", "as", kernel))
			})
		}
	}
}

// prepare returns what a release was unpacked to, and the root of a machine of it, with
// our programs for a Go architecture.
func prepare(t *testing.T, r release, arch string) (unpacked, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("run it as root")
	}
	unpacked, err := r.unpack(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{}
	for name, pkg := range map[string]string{"guest": "./guest", "xivo-firstboot": "../../cmd/xivo-firstboot"} {
		programs[name] = filepath.Join(t.TempDir(), name)
		build := exec.CommandContext(t.Context(), "nice", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", programs[name], pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s for %s: %v\n%s", pkg, arch, err, out)
		}
	}
	root = filepath.Join(t.TempDir(), "root")
	if err := r.machine(unpacked, root, programs); err != nil {
		t.Fatal(err)
	}
	return unpacked, root
}

// watch runs a machine to its end, and fails with its last lines unless all that it
// tried passed.
func watch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	runtime.LockOSThread() // it dies with the thread that started it
	defer runtime.UnlockOSThread()
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")} // nothing of this machine's
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		in.Close()
	}()
	alarm := time.AfterFunc(hang, func() {
		in.CloseWithError(fmt.Errorf("it said nothing for %s", hang))
		cmd.Process.Kill()
	})
	defer alarm.Stop()

	var last []string
	passed, failed, done := 0, 0, false
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		alarm.Reset(hang)
		line := strings.TrimSpace(lines.Text())
		last = append(last, line)
		switch what, rest, _ := strings.Cut(line, " "); what {
		case "PASS":
			passed++
			t.Log(rest)
		case "FAIL":
			failed++
			t.Error(line)
		case "DONE":
			done = true
		default:
			if strings.HasSuffix(what, "MB") {
				t.Log(line)
			}
		}
	}
	err := <-ended
	if passed == 0 || failed > 0 || !done || err != nil || lines.Err() != nil {
		t.Fatalf("%d passed, %d failed, came to its end: %t; %v, %v; its last lines:\n%s", passed, failed, done, err, lines.Err(),
			strings.Join(last[max(0, len(last)-150):], "\n"))
	}
}
