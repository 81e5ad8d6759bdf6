package seal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

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

func TestTheManifestKeepsWhatAnEarlierSealTookOut(t *testing.T) {
	first, second, third := time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	m := &Manifest{At: first, Operations: []Operation{{Name: "uuid", Removed: []string{"the UUID"}}, {Name: "logs", Removed: []string{"old"}}, {Name: "raft"}}}
	for _, at := range []time.Time{second, third} {
		next := &Manifest{At: at, Operations: []Operation{{Name: "uuid"}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}}
		next.Keep(m)
		want := []Operation{{Name: "uuid", Removed: []string{"the UUID"}, Earlier: &first}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}
		if d := cmp.Diff(want, next.Operations); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		m = next
	}
}

func TestNoCallerStaysInALog(t *testing.T) {
	p := &platform.Platform{Root: t.TempDir()}
	emptied := []string{"/var/log/asterisk/cdr-csv/Master.csv", "/var/log/asterisk/full", "/var/log/dpkg.log", "/var/log/kern.log", "/var/log/postgresql/postgresql-9.4-main.log"}
	removed := []string{"/var/log/asterisk/full.1", "/var/log/kern.log.12.gz", "/var/log/nginx/access.log-20160101"}
	for _, name := range append(emptied, removed...) {
		write(t, p.Root, name, "a call of 0033123456789")
	}
	write(t, p.Root, "/var/log/mail.log", "")
	logs := NoLogs(p, "/var/log")
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
	daemon, err := os.OpenFile(p.Path(emptied[4]), os.O_WRONLY|os.O_APPEND, 0)
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
	write(t, p.Root, "/var/log/mail.log", "another")
	if diff, err := logs.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	for _, name := range removed {
		if _, err := os.Stat(p.Path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, name := range emptied {
		raw, err := os.ReadFile(p.Path(name))
		if err != nil || strings.Contains(string(raw), "0033") {
			t.Errorf("%s: %q, %v", name, raw, err)
		}
		if st, err := os.Stat(p.Path(name)); err == nil && st.Mode().Perm() != 0o640 {
			t.Errorf("%s: %s", name, st.Mode())
		}
	}

	// What came back is found, whatever was emptied.
	write(t, p.Root, emptied[0], "a call of 0033123456789")
	if diff, err := logs.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Errorf("a log that was not emptied: %v, %v", diff, err)
	}
}
