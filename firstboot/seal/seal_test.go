package seal

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

func write(t *testing.T, root, name, content string) {
	t.Helper()
	file := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestGoneTakesWhatMatchesAndNothingElse(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	write(t, p.Root, "/etc/ssh/ssh_host_rsa_key", "k")
	write(t, p.Root, "/etc/ssh/sshd_config", "c")
	write(t, p.Root, "/var/lib/cloud/data/instance-id", "i")
	gone := Gone(p, "/etc/ssh/ssh_host_*", "/var/lib/cloud/data", "/not/there")

	diff, err := gone.Diff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"/etc/ssh/ssh_host_rsa_key", "/var/lib/cloud/data"}, diff); d != "" {
		t.Error(d)
	}
	if err := gone.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := gone.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	if _, err := os.Stat(p.Path("/etc/ssh/sshd_config")); err != nil {
		t.Error("the configuration went too")
	}
}

func TestEmptiedKeepsTheFileAndItsMode(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	write(t, p.Root, "/var/log/xivo-ctid.log", "secret things")
	empty := Emptied(p, "/var/log/*.log")
	if diff, err := empty.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if err := empty.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := empty.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	st, err := os.Stat(p.Path("/var/log/xivo-ctid.log"))
	if err != nil || st.Size() != 0 || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestFileIsWrittenWithItsMode(t *testing.T) {
	f := File{Platform: &platform.Platform{Root: t.TempDir()}, Path: "/usr/local/sbin/x", Content: []byte("#!"), Mode: 0o755}
	if diff, err := f.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if err := f.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := f.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
}
