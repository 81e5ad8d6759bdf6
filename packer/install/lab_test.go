package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// TestInstallOnDebian runs the provisioner in a real Debian 12, in namespaces
// without any network but loopback, against a mirror that this test serves
// there: real apt repositories, and a script with the contract of the
// publisher's, which is out of a test machine's reach.
func TestInstallOnDebian(t *testing.T) {
	root := os.Getenv("XIVO_SERVER_ROOT")
	if os.Getenv("XIVO_LAB") == "" || root == "" || os.Geteuid() != 0 {
		t.Skip("needs root, XIVO_LAB=1 and XIVO_SERVER_ROOT")
	}
	d := newLabDebian(t, root)
	d.serve(t, newMirror(t))

	const wanted = "2024.10.00"
	provision := func(s settings) (shown string, err error) {
		var p Provisioner
		// Through sudo, as most people's builds do it.
		if err := p.Prepare(settings{"xivo_version": wanted, "mirror": "http://mirror.test", "archive": true, "apt_retries": 4, "sudo": true, "timeout": "5m"}, s); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err = p.Provision(t.Context(), &packersdk.BasicUi{Reader: strings.NewReader(""), Writer: &out, ErrorWriter: &out}, d, nil)
		return out.String(), err
	}
	refused := func(name string, s settings, want string) {
		t.Run(name, func(t *testing.T) {
			before := d.changes(t)
			_, err := provision(s)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if diff := cmp.Diff(before, d.changes(t)); diff != "" {
				t.Errorf("the machine was changed:\n%s", diff)
			}
		})
	}

	refused("another Debian", settings{"xivo_version": "15.19"}, "XiVO 15.19 needs Debian 7 (wheezy), and the machine is Debian 12.")
	refused("a mirror without a name", settings{"mirror": "http://nowhere.test"}, "cannot reach the mirror http://nowhere.test")
	refused("a mirror that is down", settings{"mirror": "http://127.0.0.1:1"}, "cannot reach the mirror http://127.0.0.1:1")
	refused("a version that the mirror does not have", settings{"xivo_version": "2024.05.99"}, "answers and does not have /archive/dists/xivo-2024.05.99/Release")
	refused("no script there", settings{"script_path": "/gone.sh"}, "answers and does not have /gone.sh")
	refused("a page for a script", settings{"script_path": "/page.html"}, "is no script")
	if t.Failed() {
		return
	}

	shown, err := provision(nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, shown)
	}
	for _, want := range []string{"Looking for XiVO 2024.10.00 on http://mirror.test", "Acquire::Retries \"4\";", "Setting up xivo (2024.10.00)", "restarted all", "XiVO 2024.10.00 is installed"} {
		if !strings.Contains(shown, want) {
			t.Errorf("the user does not see %q:\n%s", want, shown)
		}
	}
	for file, want := range map[string]string{
		"/usr/share/xivo/XIVO-VERSION":                "2024.10.00\n",
		"/etc/apt/sources.list":                       "deb [trusted=yes] http://archive.debian.org/debian bookworm main\n",
		"/etc/apt/sources.list.d/xivo-dist.list":      "deb [trusted=yes] http://mirror.test/archive xivo-2024.10.00 main\n",
		"/etc/wgetrc":                                 "inet4_only = on\n", // the script's, not the package's
		archiveFile:                                   archiveSettings,
		"/var/lib/xivo-preseeded":                     "true\n",
		"/etc/apt/sources.list.d/tmp-pf.sources.list": "",
		scriptFile:                                    "",
		aptFile:                                       "",
	} {
		raw, err := os.ReadFile(d.path(file))
		if want == "" && err == nil {
			t.Errorf("%s is still there", file)
		} else if want != "" && (err != nil || string(raw) != want) {
			t.Errorf("%s: got %q, %v, want %q", file, raw, err, want)
		}
	}

	t.Run("a second time", func(t *testing.T) {
		before := d.changes(t)
		shown, err := provision(nil)
		if err != nil || !strings.Contains(shown, "XiVO 2024.10.00 is already installed: nothing to do") {
			t.Errorf("%v\n%s", err, shown)
		}
		if diff := cmp.Diff(before, d.changes(t)); diff != "" {
			t.Errorf("the machine was changed:\n%s", diff)
		}
	})
	refused("another version on top", settings{"xivo_version": "2025.05.00"}, "the machine has XiVO 2024.10.00 and 2025.05.00 is wanted")
}

// labDebian is a Debian root with a throw-away layer over it, and a
// communicator into it.
type labDebian struct {
	packersdk.Communicator // what is not expected panics
	sandbox                *machine.Sandbox
}

const layer = "/run/layer"

func newLabDebian(t *testing.T, root string) *labDebian {
	t.Helper()
	s, err := machine.NewSandbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for _, argv := range [][]string{
		{"mkdir", layer},
		{"mount", "-t", "tmpfs", "tmpfs", layer},
		{"mkdir", layer + "/upper", layer + "/work", layer + "/root"},
		{"mount", "-t", "overlay", "overlay", "-o", "lowerdir=" + root + ",upperdir=" + layer + "/upper,workdir=" + layer + "/work", layer + "/root"},
		{"mount", "-t", "proc", "proc", layer + "/root/proc"},
		{"mount", "--bind", "/dev", layer + "/root/dev"},
	} {
		if err := s.Run(t.Context(), argv...); err != nil {
			t.Fatal(err)
		}
	}

	d := &labDebian{sandbox: s}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{
		"/etc/hosts":            "127.0.0.1 localhost mirror.test archive.debian.org " + host + "\n",
		"/etc/resolv.conf":      "nameserver 127.0.0.1\n",
		"/etc/apt/sources.list": "deb [trusted=yes] http://deb.debian.org/debian bookworm main\n",
	} {
		// Over a link of the image, which would lead out of the sandbox.
		if err := os.RemoveAll(d.path(file)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path(file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// path is where a file of the Debian can be read from here.
func (d *labDebian) path(file string) string { return d.sandbox.Path(layer, "root", file) }

// changes returns the files that were written since the Debian was unpacked.
func (d *labDebian) changes(t *testing.T) map[string]string {
	t.Helper()
	upper := d.sandbox.Path(layer, "upper")
	files := map[string]string{}
	err := filepath.WalkDir(upper, func(file string, e fs.DirEntry, err error) error {
		// sudo keeps time stamps and a note of its lecture.
		if err != nil || !e.Type().IsRegular() || strings.Contains(file, "/sudo/") {
			return err
		}
		raw, err := os.ReadFile(file)
		files[strings.TrimPrefix(file, upper)] = fmt.Sprintf("%x", sha256.Sum256(raw))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Start runs a shell command line, as a connection does: with no terminal.
func (d *labDebian) Start(ctx context.Context, remote *packersdk.RemoteCmd) error {
	cmd := d.sandbox.Command(ctx, "chroot", layer+"/root", "env", "-i",
		"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", remote.Command)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = remote.Stdin, remote.Stdout, remote.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		cmd.Wait()
		remote.SetExited(cmd.ProcessState.ExitCode())
	}()
	return nil
}

// serve serves files on port 80 of the sandbox's loopback.
func (d *labDebian) serve(t *testing.T, files map[string][]byte) {
	t.Helper()
	listener, err := listenIn(d.sandbox.Namespace("net"), "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Debian's own repository and the mirror differ in paths, not in hosts.
		content, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(content)
	})}
	t.Cleanup(func() { server.Close() })
	go server.Serve(listener)
}

// listenIn listens in another network namespace. A socket stays in the one that
// it was made in; the thread that made it never runs anything else.
func listenIn(namespace, address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: it ends with the goroutine
		ns, err := os.Open(namespace)
		if err != nil {
			made <- result{err: err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			made <- result{err: err}
			return
		}
		l, err := net.Listen("tcp4", address)
		made <- result{l, err}
	}()
	r := <-made
	return r.listener, r.err
}

// newMirror returns the files of the XiVO mirror and, on the same server, of
// archive.debian.org: its package wget brings a configuration file that the
// script has already written, and its Release file has expired.
func newMirror(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{
		"/xivo_install.sh":      []byte(installScript),
		"/page.html":            []byte("<html>Please log in</html>\n"),
		"/d-i/bookworm/pkg.cfg": []byte("xivo xivo/preseeded boolean true\n"),
		"/xivo_current.key":     []byte("a key\n"),
	}
	addRepository(t, files, "/archive", "xivo-2024.10.00", time.Now().Add(time.Hour),
		deb{name: "xivo-dist", version: "2024.10.00", files: map[string]string{
			"usr/bin/xivo-dist": "#!/bin/sh\nset -e\necho \"deb [trusted=yes] http://mirror.test/archive $1 main\" >/etc/apt/sources.list.d/xivo-dist.list\n",
		}},
		deb{name: "xivo", version: "2024.10.00", files: map[string]string{
			"usr/share/xivo/XIVO-VERSION": "2024.10.00\n",
			"usr/bin/xivo-service":        "#!/bin/sh\necho \"restarted $2\"\n",
			// It asks, and takes what was preseeded.
			"DEBIAN/templates": "Template: xivo/preseeded\nType: boolean\nDefault: false\nDescription: Whether the answer was preseeded\n",
			"DEBIAN/postinst":  "#!/bin/sh\nset -e\n. /usr/share/debconf/confmodule\ndb_input critical xivo/preseeded || true\ndb_go || true\ndb_get xivo/preseeded\necho \"$RET\" >/var/lib/xivo-preseeded\n",
		}})
	addRepository(t, files, "/debian", "bookworm", time.Now().AddDate(-1, 0, 0),
		deb{name: "wget", version: "1.21", files: map[string]string{
			"etc/wgetrc":       "# the package's\n",
			"DEBIAN/conffiles": "/etc/wgetrc\n",
		}})
	return files
}

// installScript keeps the contract of the publisher's: its mirror is built in,
// -a takes a version without prefix and nothing else will do, the Debian is
// checked, /etc/wgetrc is written before wget is installed, packages come from
// archive/, answers from d-i/, and everything is restarted at the end. Only a
// key for the packages is missing: they are trusted unsigned.
const installScript = `#!/bin/bash
set -e
mirror='http://mirror.xivo.solutions'
[ "$1" = -a ] && [ $# -eq 2 ] && [ "${2::5}" != xivo- ] || { echo 'usage: -a version' >&2; exit 1; }
version=$2
[ "$(cut -d . -f 1 /etc/debian_version)" = 12 ] || { echo 'You must install XiVO on a Debian 12' >&2; exit 1; }
if read -r answer; then echo 'somebody answers' >&2; exit 1; fi

apt-config dump Acquire::Retries # what it is run with; not in the publisher's
echo 'inet4_only = on' >>/etc/wgetrc
apt-get update
apt-get install --assume-yes wget curl
echo "deb [trusted=yes] $mirror/archive xivo-$version main" >/etc/apt/sources.list.d/tmp-pf.sources.list
curl -fsSL "$mirror/xivo_current.key" >/dev/null
apt-get update
apt-get install --assume-yes xivo-dist
xivo-dist "xivo-$version"
rm -f /etc/apt/sources.list.d/tmp-pf.sources.list
apt-get update
curl -fsSL "$mirror/d-i/bookworm/pkg.cfg" | debconf-set-selections
apt-get install --assume-yes --download-only xivo
apt-get install --assume-yes xivo
xivo-service restart all
`

// deb is a Debian package. Files below DEBIAN describe it.
type deb struct {
	name, version string
	files         map[string]string
}

// addRepository adds an unsigned apt repository with one suite.
func addRepository(t *testing.T, files map[string][]byte, base, suite string, validUntil time.Time, debs ...deb) {
	t.Helper()
	var index strings.Builder
	for _, d := range debs {
		control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: Nobody <nobody@mirror.test>\nDescription: stand-in\n", d.name, d.version)
		raw := d.build(t, control)
		file := fmt.Sprintf("pool/%s_%s_all.deb", d.name, d.version)
		files[path.Join(base, file)] = raw
		fmt.Fprintf(&index, "%sFilename: %s\nSize: %d\nSHA256: %x\n\n", control, file, len(raw), sha256.Sum256(raw))
	}
	arch := runtime.GOARCH
	if arch == "386" {
		arch = "i386"
	}
	packages := "main/binary-" + arch + "/Packages"
	dist := path.Join(base, "dists", suite)
	files[path.Join(dist, packages)] = []byte(index.String())
	const rfc = "Mon, 02 Jan 2006 15:04:05 UTC"
	files[path.Join(dist, "Release")] = fmt.Appendf(nil,
		"Suite: %s\nCodename: %[1]s\nArchitectures: %s\nComponents: main\nDate: %s\nValid-Until: %s\nSHA256:\n %x %d %s\n",
		suite, arch, validUntil.AddDate(0, 0, -7).UTC().Format(rfc), validUntil.UTC().Format(rfc),
		sha256.Sum256([]byte(index.String())), index.Len(), packages)
}

func (d deb) build(t *testing.T, control string) []byte {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "package.deb")
	d.files["DEBIAN/control"] = control
	for name, content := range d.files {
		file, mode := filepath.Join(dir, name), fs.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	if said, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "--build", dir, out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, said)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
