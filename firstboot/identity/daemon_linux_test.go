package identity_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

func TestALinkInPlaceOfAFileOfTheUUIDIsRefused(t *testing.T) {
	p := root(t, map[string]string{"/etc/systemd/system.conf": "[Manager]\n", "/secret": "root's"})
	if err := os.MkdirAll(p.Path("/etc/default"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(p.Path("/secret"), p.Path("/etc/default/xivo")); err != nil {
		t.Fatal(err)
	}
	r := identity.UUIDInFiles(p, uuid.New())
	_, err := r.Diff(t.Context())
	for _, err := range []error{err, r.Apply(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "symbolic link") {
			t.Errorf("%v", err)
		}
	}
	if got := content(t, p, "/secret"); got != "root's" {
		t.Errorf("%q", got)
	}
}

// An administrator's links into a folder that a clone does not have.
func TestACertificateThatIsALinkToNothingIsMadeInItsPlace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to give the key to a group")
	}
	p := root(t, map[string]string{"/etc/group": "www-data:x:33:consul\n", "/etc/hostname": "xivo-b\n"})
	for _, name := range []string{platform.CertificateKey, platform.CertificateFile} {
		if err := os.MkdirAll(filepath.Dir(p.Path(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(p.Path("/elsewhere"), p.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	converge(t, identity.Certificate(p))
	for name, want := range map[string]fs.FileMode{platform.CertificateKey: 0o640, platform.CertificateFile: 0o644} {
		st, err := os.Lstat(p.Path(name))
		if err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if _, err := os.Stat(p.Path("/elsewhere")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what the link led to was made: %v", err)
	}
}

// xivo-provd's user owns the folder.
func TestAFIFOInPlaceOfProvdsFileHangsNothing(t *testing.T) {
	conn := database(t, "16.03")
	p := root(t, nil)
	file := p.Path("/var/lib/xivo-provd/jsondb/configs/base")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(file, 0o666); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := identity.ForeignAddresses(t.Context(), conn, p, func(netip.Addr) bool { return true })
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "FIFO") {
			t.Errorf("%v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
	}
}
