package consul_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// consulUser owns Consul's two folders, and would like to be root.
const consulUser = 61234

// owned is a server whose Consul folders are Consul's user's, and a file of root's.
func owned(t *testing.T) (p *platform.Platform, secret string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can be tricked")
	}
	p = layout(t, "xivo", free(t))
	check(t, os.Chmod(filepath.Dir(p.Root), 0o755))
	write(t, p, platform.ConsulDataDir+"/raft/raft.db", "log", 0o600)
	for _, dir := range []string{platform.ConsulConfigDir, platform.ConsulDataDir} {
		check(t, filepath.Walk(p.Path(dir), func(name string, _ os.FileInfo, err error) error {
			return errors.Join(err, os.Lchown(name, consulUser, consulUser))
		}))
	}
	const file = "/root/secret"
	write(t, p, file, "root's", 0o600)
	return p, p.Path(file)
}

func keepsSecret(t *testing.T, secret string) {
	t.Helper()
	raw, err := os.ReadFile(secret)
	check(t, err)
	st, err := os.Stat(secret)
	check(t, err)
	if uid := st.Sys().(*syscall.Stat_t).Uid; string(raw) != "root's" || uid != 0 || st.Mode().Perm() != 0o600 {
		t.Errorf("root's file holds %q, and is %d's, mode %o", raw, uid, st.Mode().Perm())
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

// planted is what Consul's user puts in the place of a file.
var planted = map[string]func(name, secret string) error{
	"symbolic link": func(name, secret string) error { return os.Symlink(secret, name) },
	"FIFO":          func(name, _ string) error { return syscall.Mkfifo(name, 0o666) },
	"folder":        func(name, _ string) error { return os.Mkdir(name, 0o777) },
}

func plant(t *testing.T, what, name, secret string) {
	t.Helper()
	check(t, os.RemoveAll(name))
	check(t, planted[what](name, secret))
	check(t, os.Lchown(name, consulUser, consulUser))
}

func TestConsulsUserWinsNoFileOfRootsWithALink(t *testing.T) {
	config := func(p *platform.Platform) resource { return consul.ConfigFile(p, settings()) }
	tokens := func(p *platform.Platform) resource { return consul.TokenFiles(p, meshToken) }
	for _, c := range []struct {
		file string
		of   func(*platform.Platform) resource
	}{
		{ours, config},
		{packaged, config},
		{packaged, tokens},
		{masterTok, tokens},
		{daemonTok, tokens},
	} {
		for what := range planted {
			t.Run(filepath.Base(c.file)+" is a "+what, func(t *testing.T) {
				p, secret := owned(t)
				plant(t, what, p.Path(c.file), secret)
				r := c.of(p)
				for _, do := range []func() error{
					func() error { _, err := r.Diff(t.Context()); return err },
					func() error { return r.Apply(t.Context()) },
				} {
					if err := ends(t, do); err == nil || !strings.Contains(err.Error(), what) {
						t.Errorf("%v", err)
					}
				}
				keepsSecret(t, secret)
			})
		}
	}
}

func TestWhatConsulsUserPutsBesideTheConfigurationIsNotRead(t *testing.T) {
	for _, what := range []string{"symbolic link", "FIFO"} {
		t.Run(what, func(t *testing.T) {
			p, secret := owned(t)
			plant(t, what, p.Path(platform.ConsulConfigDir, "site.json"), secret)
			err := ends(t, func() error { _, err := consul.Dial(p); return err })
			if err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%v", err)
			}
			err = ends(t, func() error { _, err := consul.ConfigFile(p, settings()).Diff(t.Context()); return err })
			if err == nil || !strings.Contains(err.Error(), what) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestAFIFOOfAnAbandonedNameHangsNothing(t *testing.T) {
	p, secret := owned(t)
	for _, name := range []string{ours, packaged, masterTok, daemonTok} {
		plant(t, "FIFO", p.Path(filepath.Dir(name), "."+filepath.Base(name)+".xivo-firstboot-1"), secret)
	}
	for _, r := range []resource{consul.ConfigFile(p, settings()), consul.TokenFiles(p, meshToken)} {
		check(t, ends(t, func() error { return r.Apply(t.Context()) }))
		same(t, r)
	}
}

// Consul's user puts a link in the place of the file that was just written, before
// it is given away.
func TestConsulsUserWinsNoRaceForTheConfiguration(t *testing.T) {
	p, secret := owned(t)
	check(t, os.Chmod(filepath.Dir(secret), 0o755))
	swap := exec.Command("sh", "-ec", `echo begun; while :; do ln -sf "$1" interconnection.json; rm -f interconnection.json; done 2>/dev/null`, "sh", secret)
	swap.Dir = p.Path(platform.ConsulConfigDir)
	swap.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: consulUser, Gid: consulUser}, Setpgid: true, Pdeathsig: syscall.SIGKILL}
	out, err := swap.StdoutPipe()
	check(t, err)
	check(t, swap.Start())
	defer swap.Wait()
	defer io.Copy(io.Discard, out) // until the last of its children is gone
	defer syscall.Kill(-swap.Process.Pid, syscall.SIGKILL)
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	r := consul.ConfigFile(p, settings())
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		r.Apply(t.Context())
		// What the step does after it.
		os.Remove(p.Path(ours))
	}
	keepsSecret(t, secret)
}

// The private Consul is root's, and writes to what it is given.
func TestThePrivateConsulIsGivenNoLink(t *testing.T) {
	for _, c := range []struct{ name, file, target, told string }{
		{"the log", "raft/raft.db", "", "symbolic link"},
		{"a snapshot", "raft/snapshots", "folder", "symbolic link"},
		{"the whole", "raft", "folder", "link of user"},
		{"the node id", "node-id", "", "symbolic link"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, secret := owned(t)
			bin := t.TempDir()
			const script = "#!/bin/sh\ncd \"$(dirname \"$3\")/data\" && for f in raft/raft.db raft/snapshots/secret raft/secret node-id; do echo won >>$f; done\nexit 1\n"
			check(t, os.WriteFile(filepath.Join(bin, "consul"), []byte(script), 0o755))
			t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
			target := secret
			if c.target == "folder" {
				target = filepath.Dir(secret)
			}
			plant(t, "symbolic link", p.Path(platform.ConsulDataDir, c.file), target)
			err := ends(t, func() error {
				return consul.ExportAtRest(t.Context(), p, p.Path(platform.StateDir, "kv.json"))
			})
			if err == nil || !strings.Contains(err.Error(), c.told) {
				t.Errorf("%v", err)
			}
			keepsSecret(t, secret)
			if _, err := os.Stat(p.Path(consul.AtRestDir)); err == nil {
				t.Error("the copy was left behind")
			}
		})
	}
	t.Run("a FIFO hangs nothing", func(t *testing.T) {
		p, secret := owned(t)
		plant(t, "FIFO", p.Path(platform.ConsulDataDir, "node-id"), secret)
		err := ends(t, func() error { return consul.ExportAtRest(t.Context(), p, p.Path(platform.StateDir, "kv.json")) })
		if err == nil || !strings.Contains(err.Error(), "FIFO") {
			t.Errorf("%v", err)
		}
	})
}

func TestWhatALinkLeadsToIsNotForgotten(t *testing.T) {
	p, secret := owned(t)
	check(t, os.Rename(secret, filepath.Join(filepath.Dir(secret), "remote.snapshot")))
	secret = filepath.Join(filepath.Dir(secret), "remote.snapshot")
	plant(t, "symbolic link", p.Path(platform.ConsulDataDir, "serf"), filepath.Dir(secret))
	if err := consul.ForgetWAN(p); err == nil || !strings.Contains(err.Error(), "link of user") {
		t.Errorf("%v", err)
	}
	keepsSecret(t, secret)
	becomes(t, consul.NoState(p))
	keepsSecret(t, secret)
}
