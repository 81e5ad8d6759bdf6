package files_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
)

// daemon is the user and group of a daemon who would like to be root.
const daemon = 61234

// scene is a server with a file of root's, and a folder of the daemon's.
type scene struct {
	root   string
	secret string // root's file
	own    string // the daemon's folder
}

func play(t *testing.T) scene {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be tricked")
	}
	root := t.TempDir()
	s := scene{root, filepath.Join(root, "secrets/shadow"), filepath.Join(root, "own")}
	// The test's folder is nobody else's.
	must(t, os.Chmod(filepath.Dir(root), 0o755))
	must(t, os.Mkdir(filepath.Dir(s.secret), 0o755))
	must(t, os.WriteFile(s.secret, []byte("root's"), 0o640))
	must(t, os.Mkdir(s.own, 0o755))
	must(t, os.Chown(s.own, daemon, daemon))
	return s
}

// command is a script run as the daemon's user, in its folder.
func (s scene) command(t *testing.T, script string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script, "sh", s.secret)
	cmd.Dir = s.own
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: daemon, Gid: daemon}, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// does has the daemon do something once. $1 is the path of root's file.
func (s scene) does(t *testing.T, script string) {
	t.Helper()
	if out, err := s.command(t, script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// repeats has the daemon do something again and again while f runs.
func (s scene) repeats(t *testing.T, script string, f func()) {
	t.Helper()
	cmd := s.command(t, "echo begun; while :; do "+script+"; done 2>/dev/null")
	cmd.SysProcAttr.Setpgid = true
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		io.Copy(io.Discard, out) // until the last of its children is gone
		cmd.Wait()
	}()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	f()
}

// keepsSecret wants root's file to be as it was.
func (s scene) keepsSecret(t *testing.T) {
	t.Helper()
	raw, err := os.ReadFile(s.secret)
	if err != nil || string(raw) != "root's" {
		t.Errorf("root's file holds %q, %v", raw, err)
	}
	st, err := os.Stat(s.secret)
	if err != nil {
		t.Fatal(err)
	}
	if owner := st.Sys().(*syscall.Stat_t); owner.Uid != 0 || owner.Gid != 0 || st.Mode().Perm() != 0o640 {
		t.Errorf("root's file became %d:%d's, mode %o", owner.Uid, owner.Gid, st.Mode().Perm())
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ends wants f not to hang.
func ends(t *testing.T, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("it hangs")
		return nil
	}
}

// planted is what a daemon's user can put in the place of a file.
var planted = []struct{ name, script, told string }{
	{"a link to root's file", `ln -s "$1" file`, "symbolic link"},
	{"a link to nothing", `ln -s nowhere file`, "symbolic link"},
	{"a FIFO", `mkfifo file`, "FIFO"},
	{"a folder", `mkdir file`, "folder"},
	{"a link to a device", `ln -s /dev/zero file`, "symbolic link"},
}

func TestWhatIsNoRegularFileIsNeitherReadNorWritten(t *testing.T) {
	for _, c := range planted {
		t.Run(c.name, func(t *testing.T) {
			s := play(t)
			s.does(t, c.script)
			name := filepath.Join(s.own, "file")
			before, err := os.Lstat(name)
			must(t, err)
			for what, do := range map[string]func() error{
				"write": func() error { return files.WriteFile(name, []byte("new"), files.Private()) },
				"read":  func() error { _, err := files.ReadFile(name); return err },
				"kept":  func() error { _, err := files.Kept(name, 0o600); return err },
				"present": func() error {
					_, err := files.Present(s.root, "/own/file", []byte("new"), 0o644).Diff(t.Context())
					return errors.Join(err, files.Present(s.root, "/own/file", []byte("new"), 0o644).Apply(t.Context()))
				},
			} {
				err := ends(t, do)
				if err == nil || errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %v", what, err)
					continue
				}
				for _, part := range []string{c.told, name, "move it away"} {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("%s: %q is not said: %v", what, part, err)
					}
				}
			}
			if after, err := os.Lstat(name); err != nil || !os.SameFile(before, after) {
				t.Errorf("it was replaced: %v, %v", after, err)
			}
			s.keepsSecret(t)
		})
	}
}

func TestADeviceIsNeitherReadNorWritten(t *testing.T) {
	s := play(t)
	name := filepath.Join(s.own, "file")
	if err := unix.Mknod(name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Skip("no device can be made here: ", err)
	}
	if _, err := files.ReadFile(name); err == nil || !strings.Contains(err.Error(), "is a device") {
		t.Errorf("read: %v", err)
	}
	if err := files.WriteFile(name, nil, files.Private()); err == nil || !strings.Contains(err.Error(), "is a device") {
		t.Errorf("write: %v", err)
	}
}

// Names of abandoned temporary files: those that WriteFile removes.
func TestNothingButAFileIsTakenForAnAbandonedOne(t *testing.T) {
	for _, c := range planted {
		t.Run(c.name, func(t *testing.T) {
			s := play(t)
			const beside = ".key.xivo-firstboot-1"
			s.does(t, strings.ReplaceAll(c.script, "file", beside))
			name := filepath.Join(s.own, "key")
			must(t, ends(t, func() error { return files.WriteFile(name, []byte("new"), files.Private()) }))
			if got, err := os.ReadFile(name); err != nil || string(got) != "new" {
				t.Errorf("%q, %v", got, err)
			}
			if _, err := os.Lstat(filepath.Join(s.own, beside)); err != nil {
				t.Errorf("what is not ours was removed: %v", err)
			}
			s.keepsSecret(t)
		})
	}
}

func TestALinkThatIsPutInPlaceMeanwhileWinsNothing(t *testing.T) {
	s := play(t)
	name := filepath.Join(s.own, "file")
	attr := files.Attr{Mode: 0o666, UID: daemon, GID: daemon}
	s.repeats(t, `ln -sf "$1" file; for f in .file.xivo-firstboot-*; do ln -sf "$1" "$f"; done; rm -f file .file.*`, func() {
		written, refused := 0, 0
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
			if files.WriteFile(name, []byte("daemon's"), attr) == nil {
				written++
			} else {
				refused++
			}
			if got, err := files.ReadFile(name); err == nil && string(got) == "root's" {
				t.Fatal("root's file was read")
			}
		}
		t.Logf("%d written, %d refused", written, refused)
	})
	s.keepsSecret(t)
}

func TestAFolderThatIsExchangedMeanwhileWinsNothing(t *testing.T) {
	s := play(t)
	s.does(t, "mkdir conf; touch conf/shadow")
	name := filepath.Join(s.own, "conf/shadow")
	attr := files.Attr{Mode: 0o666, UID: daemon, GID: daemon}
	s.repeats(t, `mv conf real; ln -s "${1%/*}" conf; rm conf; mv real conf`, func() {
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
			files.WriteFile(name, []byte("daemon's"), attr)
			files.Absent(s.root, "/own/conf/shadow").Apply(t.Context())
			if got, err := files.ReadFile(name); err == nil && string(got) == "root's" {
				t.Fatal("root's file was read")
			}
		}
	})
	s.keepsSecret(t)
	if entries, err := os.ReadDir(filepath.Dir(s.secret)); err != nil || len(entries) != 1 {
		t.Errorf("in root's folder: %v, %v", entries, err)
	}
}

func TestALogThatBecomesALinkWinsNothing(t *testing.T) {
	s := play(t)
	s.does(t, `mkdir sub`)
	swap := `for f in file.log file.log.1 sub/file.log; do echo line >new; mv -f new $f; ln -sf "$1" $f; done; mkfifo new; mv -f new file.log; rm -f file.log`
	swap += `; mv sub real; ln -s "${1%/*}" sub; rm sub; mv real sub`
	s.repeats(t, swap, func() {
		logs := files.NoLogs(s.root, "/own")
		emptied := files.Empty(s.root, "/own/*.log", "/own/sub/*")
		for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
			err := ends(t, func() error {
				_, err := logs.Diff(t.Context())
				return errors.Join(err, logs.Apply(t.Context()), emptied.Apply(t.Context()))
			})
			if err != nil && strings.Contains(err.Error(), "root's") {
				t.Fatal(err)
			}
		}
	})
	s.keepsSecret(t)
}

// Kernels before 3.6, and those told so, let everybody make hard links.
func TestAHardLinkToAFileOfRootsIsNotEmptied(t *testing.T) {
	for name, open := range map[string]func(root string) engine.Resource{
		"logs":    func(root string) engine.Resource { return files.NoLogs(root, "/own") },
		"emptied": func(root string) engine.Resource { return files.Empty(root, "/own/*.log") },
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t)
			must(t, os.Link(s.secret, filepath.Join(s.own, "file.log")))
			if err := open(s.root).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "hard link") {
				t.Errorf("%v", err)
			}
			s.keepsSecret(t)
		})
	}
}

func TestALinkOfADaemonLeadsOnlyToWhatIsItsOwn(t *testing.T) {
	absent := func(s scene) engine.Resource { return files.Absent(s.root, "/own/.ssh/*") }
	t.Run("to root's", func(t *testing.T) {
		s := play(t)
		s.does(t, `ln -s "${1%/*}" .ssh`)
		if err := absent(s).Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "link of user 61234") {
			t.Errorf("%v", err)
		}
		if err := files.Empty(s.root, "/own/.ssh/*").Apply(t.Context()); err == nil {
			t.Error("root's file was emptied")
		}
		if _, err := files.ReadFile(filepath.Join(s.own, ".ssh/shadow")); err == nil {
			t.Error("root's file was read")
		}
		s.keepsSecret(t)
	})
	t.Run("to its own", func(t *testing.T) {
		s := play(t)
		s.does(t, `mkdir keys; touch keys/a; ln -s keys .ssh`)
		must(t, absent(s).Apply(t.Context()))
		if diff, err := absent(s).Diff(t.Context()); err != nil || diff != nil {
			t.Errorf("%v, %v", diff, err)
		}
	})
	t.Run("one of root's to root's", func(t *testing.T) {
		s := play(t)
		must(t, os.Symlink("secrets", filepath.Join(s.root, "moved")))
		must(t, files.WriteFile(filepath.Join(s.root, "moved/new"), nil, files.Private()))
		if _, err := os.Stat(filepath.Join(s.root, "secrets/new")); err != nil {
			t.Error(err)
		}
	})
	t.Run("one of root's in its folder", func(t *testing.T) {
		s := play(t)
		// It may have been renamed by the daemon's user.
		must(t, os.Symlink("../secrets", filepath.Join(s.own, "link")))
		if err := files.WriteFile(filepath.Join(s.own, "link/new"), nil, files.Private()); err == nil {
			t.Error("it was followed")
		}
	})
	t.Run("in a circle", func(t *testing.T) {
		s := play(t)
		s.does(t, `ln -s b a; ln -s a b`)
		if _, err := files.ReadFile(filepath.Join(s.own, "a/file")); !errors.Is(err, unix.ELOOP) {
			t.Errorf("%v", err)
		}
	})
}

func TestWhatALinkLeadsToStaysWhenItGoes(t *testing.T) {
	s := play(t)
	s.does(t, `mkdir -p state/deep; ln -s "$1" state/deep/file; ln -s "${1%/*}" state/folder; ln -s "${1%/*}" link; mkfifo state/fifo`)
	gone := files.Absent(s.root, "/own/state", "/own/link")
	must(t, ends(t, func() error { return gone.Apply(t.Context()) }))
	if diff, err := gone.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %v, %v", diff, err)
	}
	s.keepsSecret(t)
}

func TestATreeIsCopiedWithoutLinks(t *testing.T) {
	for _, c := range []struct{ name, script, told string }{
		{"a link to root's file", `ln -s "$1" raft/raft.db`, "symbolic link"},
		{"a link to root's folder", `ln -s "${1%/*}" raft/snapshots`, "symbolic link"},
		{"a FIFO", `mkfifo raft/raft.db`, "FIFO"},
		{"as a whole a link to root's folder", `rmdir raft; ln -s "${1%/*}" raft`, "link of user"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := play(t)
			s.does(t, "mkdir raft; "+c.script)
			to := filepath.Join(s.root, "copy")
			err := ends(t, func() error { return files.CopyTree(filepath.Join(s.own, "raft"), to) })
			if err == nil || !strings.Contains(err.Error(), c.told) {
				t.Errorf("%v", err)
			}
			filepath.WalkDir(to, func(name string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() {
					t.Errorf("%s was copied", name)
				}
				return nil
			})
		})
	}
	t.Run("folders and files", func(t *testing.T) {
		s := play(t)
		s.does(t, "mkdir -p raft/snapshots/1; echo log >raft/raft.db; echo state >raft/snapshots/1/state.bin; chmod 666 raft/raft.db")
		to := filepath.Join(s.root, "copy")
		must(t, files.CopyTree(filepath.Join(s.own, "raft"), to))
		for name, want := range map[string]string{"raft.db": "log\n", "snapshots/1/state.bin": "state\n"} {
			got, err := os.ReadFile(filepath.Join(to, name))
			if err != nil || string(got) != want {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if st, err := os.Stat(filepath.Join(to, "raft.db")); err != nil || st.Mode().Perm() != 0o600 || st.Sys().(*syscall.Stat_t).Uid != 0 {
			t.Errorf("%v, %v", st, err)
		}
	})
}

func TestTheOwnerIsSetBeforeTheFileHasItsName(t *testing.T) {
	s := play(t)
	name := filepath.Join(s.own, "file")
	first := files.Attr{Mode: 0o640, UID: daemon, GID: daemon + 1}
	must(t, files.WriteFile(name, []byte("a"), first))
	if got, err := files.Kept(name, 0); err != nil || got != first {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := files.Kept(filepath.Join(s.own, "other"), 0o644); err != nil || got != (files.Attr{Mode: 0o644, UID: daemon, GID: daemon}) {
		t.Errorf("a missing one: %+v, %v", got, err)
	}
	must(t, files.Present(s.root, "/own/file", []byte("b"), 0o600).Apply(t.Context()))
	if got, err := files.Kept(name, 0); err != nil || got != (files.Attr{Mode: 0o600, UID: daemon, GID: daemon + 1}) {
		t.Errorf("after Present: %+v, %v", got, err)
	}
}

// The moment between a look at a name and its opening: another file takes the name
// as fast as the kernel can exchange two.
func TestWhatIsExchangedBetweenALookAndTheOpeningWinsNothing(t *testing.T) {
	for _, c := range []struct{ name, script string }{
		{"a link to root's file", `ln -s "$1" other.log`},
		{"a FIFO", `mkfifo other.log`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := play(t)
			s.does(t, "echo daemon >file.log; "+c.script)
			file, other := filepath.Join(s.own, "file.log"), filepath.Join(s.own, "other.log")
			exchange := func() error { return unix.Renameat2(unix.AT_FDCWD, file, unix.AT_FDCWD, other, unix.RENAME_EXCHANGE) }
			if err := exchange(); err != nil {
				t.Skip("no exchange here: ", err)
			}
			stop := make(chan struct{})
			var wg sync.WaitGroup
			defer wg.Wait()
			defer close(stop)
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						exchange()
					}
				}
			})
			logs, emptied := files.NoLogs(s.root, "/own"), files.Empty(s.root, "/own/file.log")
			must(t, ends(t, func() error {
				for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
					if got, _ := files.ReadFile(file); string(got) == "root's" {
						return errors.New("root's file was read")
					}
					logs.Apply(t.Context())
					emptied.Apply(t.Context())
				}
				return nil
			}))
			s.keepsSecret(t)
		})
	}
}
