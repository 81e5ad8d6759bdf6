package files_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
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

func TestAbsentTakesWhatMatchesAndNothingElse(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/etc/ssh/ssh_host_rsa_key", "k")
	write(t, root, "/etc/ssh/sshd_config", "c")
	write(t, root, "/var/lib/cloud/data/instance-id", "i")
	gone := files.Absent(root, "/etc/ssh/ssh_host_*", "/var/lib/cloud/data", "/not/there")

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
	if _, err := os.Stat(filepath.Join(root, "/etc/ssh/sshd_config")); err != nil {
		t.Error("the configuration went too")
	}
}

func TestEmptiedKeepsTheFileAndItsMode(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/var/log/xivo-ctid.log", "secret things")
	empty := files.Empty(root, "/var/log/*.log")
	if diff, err := empty.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("before: %v, %v", diff, err)
	}
	if err := empty.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := empty.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	st, err := os.Stat(filepath.Join(root, "/var/log/xivo-ctid.log"))
	if err != nil || st.Size() != 0 || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestFileIsWrittenWithItsMode(t *testing.T) {
	f := files.Present(t.TempDir(), "/usr/local/sbin/x", []byte("#!"), 0o755)
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

func TestNoCallerStaysInALog(t *testing.T) {
	root := t.TempDir()
	emptied := []string{"/var/log/asterisk/cdr-csv/Master.csv", "/var/log/asterisk/full", "/var/log/dpkg.log", "/var/log/kern.log", "/var/log/postgresql/postgresql-9.4-main.log"}
	removed := []string{"/var/log/asterisk/full.1", "/var/log/kern.log.12.gz", "/var/log/nginx/access.log-20160101"}
	for _, name := range append(emptied, removed...) {
		write(t, root, name, "a call of 0033123456789")
	}
	write(t, root, "/var/log/mail.log", "")
	logs := files.NoLogs(root, "/var/log")
	found, err := logs.Diff(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := append(append([]string{}, emptied...), removed...)
	slices.Sort(want)
	slices.Sort(found)
	if d := cmp.Diff(want, found); d != "" {
		t.Errorf("found (-want +got):\n%s", d)
	}
	// The database has its log open, and writes on.
	daemon, err := os.OpenFile(filepath.Join(root, emptied[4]), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	if err := logs.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := daemon.WriteString("a line of the seal"); err != nil {
		t.Fatal(err)
	}
	write(t, root, "/var/log/mail.log", "another")
	if diff, err := logs.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	for _, name := range removed {
		if _, err := os.Stat(filepath.Join(root, name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, name := range emptied {
		raw, err := os.ReadFile(filepath.Join(root, name))
		if err != nil || strings.Contains(string(raw), "0033") {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
		if st, err := os.Stat(filepath.Join(root, name)); err == nil && st.Mode().Perm() != 0o640 {
			t.Errorf("%s: %s", name, st.Mode())
		}
	}

	// What came back is found, whatever was emptied.
	write(t, root, emptied[0], "a call of 0033123456789")
	if diff, err := logs.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Errorf("a log that was not emptied: %v, %v", diff, err)
	}
}

func TestWriteFileKeepsTheModeAndLeavesNothingBeside(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		name := filepath.Join(dir, "config.json")
		mode := rapid.SampledFrom([]os.FileMode{0o600, 0o640, 0o644}).Draw(rt, "mode")
		content := rapid.SliceOf(rapid.Byte()).Draw(rt, "content")
		if err := os.WriteFile(name, []byte("before"), mode); err != nil {
			rt.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			rt.Fatal(err)
		}
		attr, err := files.Kept(name, 0o777)
		if err != nil {
			rt.Fatal(err)
		}
		if err := files.WriteFile(name, content, attr); err != nil {
			rt.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil || string(got) != string(content) {
			rt.Errorf("content: %q, %v", got, err)
		}
		if st, _ := os.Stat(name); st.Mode().Perm() != mode {
			rt.Errorf("mode %o became %o", mode, st.Mode().Perm())
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			rt.Errorf("left behind: %v", entries)
		}
	})
}

func TestWriteFileRemovesWhatAKilledTryLeftAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		".key.yml.xivo-firstboot-1", // of a process that is dead
		".key.yml.xivo-firstboot-2", // of one that writes now
		".other.yml.xivo-firstboot-1",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	writing, err := os.Open(filepath.Join(dir, ".key.yml.xivo-firstboot-2"))
	if err != nil {
		t.Fatal(err)
	}
	defer writing.Close()
	if err := syscall.Flock(int(writing.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := files.WriteFile(filepath.Join(dir, "key.yml"), []byte("new"), files.Private()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{".key.yml.xivo-firstboot-2", ".other.yml.xivo-firstboot-1", "key.yml"}; !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
}

func TestAbsentButLeavesWhatStays(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{"/var/lib/x/export", "/var/lib/x/lock", "/var/lib/x/export-old"} {
		write(t, root, name, "x")
	}
	gone := files.AbsentBut(root, []string{"/var/lib/x/export", "/var/lib/x/lock"}, "/var/lib/x/*", "/var/lib/x/export*")
	if diff, err := gone.Diff(t.Context()); err != nil || !slices.Equal(diff, []string{"/var/lib/x/export-old"}) {
		t.Errorf("before: %v, %v", diff, err)
	}
	if err := gone.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := gone.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	for _, name := range []string{"export", "lock"} {
		if _, err := os.Stat(filepath.Join(root, "/var/lib/x", name)); err != nil {
			t.Error(err)
		}
	}
}

func TestALinkIsMadeAndCorrected(t *testing.T) {
	root := t.TempDir()
	link := files.Link(root, "/etc/wants/x.service", "/etc/x.service")
	for _, before := range []func(name string) error{
		func(string) error { return nil },
		func(name string) error {
			return errors.Join(os.Remove(name), os.Symlink("/etc/y.service", name))
		},
	} {
		if err := before(filepath.Join(root, "/etc/wants/x.service")); err != nil {
			t.Fatal(err)
		}
		if diff, err := link.Diff(t.Context()); err != nil || len(diff) != 1 {
			t.Fatalf("before: %v, %v", diff, err)
		}
		if err := link.Apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		if diff, err := link.Diff(t.Context()); err != nil || diff != nil {
			t.Errorf("after: %v, %v", diff, err)
		}
	}
	write(t, root, "/etc/file", "somebody's")
	inTheWay := files.Link(root, "/etc/file", "/etc/x.service")
	_, err := inTheWay.Diff(t.Context())
	for _, err := range []error{err, inTheWay.Apply(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "move it away") {
			t.Errorf("a file in its place: %v", err)
		}
	}
}

func TestAFileWithoutMeasureIsNotRead(t *testing.T) {
	name := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 1<<40); err != nil {
		t.Fatal(err)
	}
	if got, err := files.ReadFile(name); !errors.Is(err, limit.ErrTooLong) || !strings.Contains(err.Error(), name) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Our own program is one, and an earlier release may have been longer.
func TestAFileThatIsLongerThanItShouldBeDiffers(t *testing.T) {
	root := t.TempDir()
	write(t, root, "/usr/sbin/program", strings.Repeat("earlier", 2<<20))
	r := files.Present(root, "/usr/sbin/program", []byte(strings.Repeat("later", 2<<20)), 0o755)
	if diff, err := r.Diff(t.Context()); err != nil || !slices.Equal(diff, []string{"/usr/sbin/program differs"}) {
		t.Errorf("%q, %v", diff, err)
	}
	if err := r.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := r.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("%q, %v", diff, err)
	}
}
