package nspawn

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// local is a machine that is this host.
type local struct{ boots []string }

func (l *local) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}

// Boot says the next of boots, the last again and again.
func (l *local) Boot() string {
	if len(l.boots) == 0 {
		return ""
	}
	boot := l.boots[0]
	if len(l.boots) > 1 {
		l.boots = l.boots[1:]
	}
	return boot
}

func TestCommunicatorRunsCommands(t *testing.T) {
	for _, tc := range []struct {
		name, command, in string
		boots             []string
		out, errOut       string
		status            int
	}{
		{name: "input, outputs and status", command: "cat; echo oops >&2; exit 3", in: "hello", out: "hello", errOut: "oops\n", status: 3},
		{name: "success", command: "true"},
		{name: "killed while the machine went down", command: "exit 143", boots: []string{"1", "2"}, status: packersdk.CmdDisconnect},
		{name: "killed while it did not", command: "exit 143", boots: []string{"1"}, status: 143},
		{name: "done before it went down", command: "true", boots: []string{"1", "2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			cmd := &packersdk.RemoteCmd{Command: tc.command, Stdin: strings.NewReader(tc.in), Stdout: &out, Stderr: &errOut}
			if err := (&communicator{machine: &local{tc.boots}}).Start(t.Context(), cmd); err != nil {
				t.Fatal(err)
			}
			if got := cmd.Wait(); got != tc.status || out.String() != tc.out || errOut.String() != tc.errOut {
				t.Errorf("got %d, %q, %q", got, &out, &errOut)
			}
		})
	}
}

func TestCommunicatorCopies(t *testing.T) {
	dir := t.TempDir()
	c := &communicator{machine: &local{}}
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	want := func(name, content string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(dir, name)); string(got) != content || err != nil {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}

	t.Run("a file up, with its mode, and down", func(t *testing.T) {
		write(dir+"/a b", "content")
		fi, err := os.Stat(dir + "/a b")
		if err != nil {
			t.Fatal(err)
		}
		for dst, info := range map[string]*os.FileInfo{dir + "/it's": nil, dir + "/": &fi} {
			if err := c.Upload(dst, strings.NewReader("new"), info); err != nil {
				t.Error(err)
			}
		}
		want("it's", "new")
		want("a b", "new")
		if st, err := os.Stat(dir + "/a b"); err != nil || st.Mode().Perm() != 0o640 {
			t.Errorf("mode: %v, %v", st.Mode(), err)
		}
		var down bytes.Buffer
		if err := c.Download(dir+"/it's", &down); err != nil || down.String() != "new" {
			t.Errorf("got %q, %v", &down, err)
		}
	})
	t.Run("an error says which file and why", func(t *testing.T) {
		for _, err := range []error{
			c.Download(dir+"/none", &bytes.Buffer{}),
			c.Upload(dir+"/none/none", strings.NewReader(""), nil),
			c.UploadDir(dir+"/x", dir+"/none", nil),
			c.DownloadDir(dir+"/none", dir+"/x", nil),
		} {
			if err == nil || !strings.Contains(err.Error(), dir+"/none") || !strings.Contains(err.Error(), "No such file") && !strings.Contains(err.Error(), "nonexistent") {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("a folder, by name or by content", func(t *testing.T) {
		write(dir+"/src/sub/one", "1")
		write(dir+"/src/skipped", "2")
		for _, err := range []error{
			c.UploadDir(dir+"/up", dir+"/src", []string{"skipped"}),
			c.UploadDir(dir+"/upc", dir+"/src/", nil),
			c.DownloadDir(dir+"/src", dir+"/down", nil),
			c.DownloadDir(dir+"/src/", dir+"/downc", []string{"skipped"}),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		want("up/src/sub/one", "1")
		want("upc/sub/one", "1")
		want("upc/skipped", "2")
		want("down/src/skipped", "2")
		want("downc/sub/one", "1")
		for _, name := range []string{"/up/src/skipped", "/downc/skipped"} {
			if _, err := os.Stat(dir + name); err == nil {
				t.Errorf("%s was to be left out", name)
			}
		}
	})
}
