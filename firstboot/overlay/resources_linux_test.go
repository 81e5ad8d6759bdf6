package overlay_test

import (
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// inNamespace runs f on a thread that has a network of its own, with nothing in it.
// Network and thread end with f.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread is of no other use
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Skipf("no network namespaces here: %v", err)
	}
}

func ip(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		t.Errorf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestTheAddressIsOnLoopbackAndNothingElseLeadsToTheRange(t *testing.T) {
	a, err := overlay.Draw(uuid.New(), overlay.DefaultRange)
	check(t, err)
	next, err := overlay.Draw(a.UUID, overlay.DefaultRange, a.Address)
	check(t, err)
	member, err := overlay.Draw(uuid.New(), overlay.DefaultRange, a.Address, next.Address)
	check(t, err)

	inNamespace(t, func() {
		// A default gateway that would take anything.
		ip(t, "link", "add", "uplink", "type", "veth", "peer", "name", "gateway")
		ip(t, "addr", "add", "192.0.2.1/24", "dev", "uplink")
		ip(t, "link", "set", "uplink", "up")
		ip(t, "link", "set", "gateway", "up")
		ip(t, "route", "add", "default", "via", "192.0.2.254")

		r := overlay.Addressed(a)
		if diff, err := r.Diff(t.Context()); err != nil || len(diff) != 2 {
			t.Errorf("before: %q, %v", diff, err)
		}
		for range 2 {
			if err := r.Apply(t.Context()); err != nil {
				t.Error(err)
			}
			if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
				t.Errorf("after: %q, %v", diff, err)
			}
		}
		if out := ip(t, "route", "get", a.Address.String()); !strings.Contains(out, "local "+a.Address.String()) {
			t.Errorf("its own address is not local: %s", out)
		}
		if out, err := exec.Command("ip", "route", "get", member.Address.String()).CombinedOutput(); err == nil {
			t.Errorf("a member's address leads to %s", out)
		}
		if out := ip(t, "route", "get", "198.51.100.1"); !strings.Contains(out, "192.0.2.254") {
			t.Errorf("the default route is gone: %s", out)
		}

		// A newcomer that drew again keeps only the last one.
		r = overlay.Addressed(next)
		if diff, err := r.Diff(t.Context()); err != nil || len(diff) != 2 {
			t.Errorf("with another address: %q, %v", diff, err)
		}
		if err := r.Apply(t.Context()); err != nil {
			t.Error(err)
		}
		if out := ip(t, "addr", "show", "dev", "lo"); strings.Contains(out, a.Address.String()+"/") || !strings.Contains(out, next.Address.String()+"/32") || !strings.Contains(out, "127.0.0.1") {
			t.Errorf("lo has %s", out)
		}
	})
}
