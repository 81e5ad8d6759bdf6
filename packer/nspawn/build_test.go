package nspawn_test

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/nspawn/machine"
)

// buildDeadline is for one build on a slow computer with other things to do.
const buildDeadline = 5 * time.Minute

// TestBuild runs the builder in the real Packer, on a Debian without its
// servers, to the end and to every other end that there is.
func TestBuild(t *testing.T) {
	root, packer, old := os.Getenv("XIVO_SERVER_ROOT"), os.Getenv("XIVO_PACKER"), os.Getenv("XIVO_PACKER_OLD")
	if os.Getenv("XIVO_LAB") == "" || root == "" || packer == "" || os.Geteuid() != 0 {
		t.Skip("needs root, XIVO_LAB=1, XIVO_SERVER_ROOT and XIVO_PACKER")
	}
	b := &bench{packer: packer, source: filepath.Join(t.TempDir(), "source.raw"), plugins: t.TempDir()}
	b.makeSource(t, root)
	b.installPlugin(t)

	t.Run("an image has what was provisioned, and nothing of the apt cache", func(t *testing.T) {
		t.Parallel()
		p := b.build(t, buildOptions{provision: localPackage, aptCache: true})
		if err := p.wait(); err != nil {
			t.Fatalf("%v\n%s", err, &p.shown)
		}
		image, raw := filepath.Join(p.output, "test.qcow2"), filepath.Join(p.dir, "image.raw")
		info, err := exec.Command("qemu-img", "info", "--output=json", image).Output()
		if err != nil || !bytes.Contains(info, []byte(`"compression-type": "zstd"`)) {
			t.Errorf("the image is not compressed with zstd: %v\n%s", err, info)
		}
		run(t, "qemu-img", "convert", "-O", "raw", image, raw)
		if ls := inImage(t, raw, "/usr/lib/probe"); !strings.Contains(ls, "marker") {
			t.Errorf("the package is not in the image: %s", ls)
		}
		if ls := inImage(t, raw, "/var/cache/apt/archives"); strings.Contains(ls, ".deb") {
			t.Errorf("the image has packages in its apt cache: %s", ls)
		}
		if found, _ := filepath.Glob(filepath.Join(p.dir, "apt-cache/probe_1_all.deb")); len(found) == 0 {
			t.Error("the cache does not have the package")
		}
		// What is left is what was asked for.
		os.RemoveAll(p.output)
		os.RemoveAll(filepath.Join(p.dir, "apt-cache"))
		os.Remove(raw)
		p.nothingLeft(t)
	})

	t.Run("a build under Packer 1.9.4", func(t *testing.T) {
		t.Parallel()
		if old == "" {
			t.Skip("needs XIVO_PACKER_OLD")
		}
		other := *b
		other.packer = old
		p := other.build(t, buildOptions{provision: "true"})
		if err := p.wait(); err != nil {
			t.Fatalf("%v\n%s", err, &p.shown)
		}
		if _, err := os.Stat(filepath.Join(p.output, "test.qcow2")); err != nil {
			t.Error(err)
		}
		os.RemoveAll(p.output)
		p.nothingLeft(t)
	})

	for _, tc := range []struct {
		mode  string
		shows string
		keeps string // beside nothing
	}{
		{mode: "cleanup"},
		{mode: "abort", keeps: "output/.test.work"},
		{mode: "ask"}, // with nobody there to answer
		{mode: "run-cleanup-provisioner", shows: "the cleanup provisioner ran", keeps: "output/.test.work"},
	} {
		t.Run("a provisioner that fails, -on-error="+tc.mode, func(t *testing.T) {
			t.Parallel()
			p := b.build(t, buildOptions{provision: "exit 3", args: []string{"-on-error=" + tc.mode}})
			if err := p.wait(); err == nil {
				t.Fatalf("the build succeeded\n%s", &p.shown)
			}
			if !strings.Contains(p.shown.String(), "exit status: 3") || !strings.Contains(p.shown.String(), tc.shows) {
				t.Errorf("it does not say what failed, or not %q:\n%s", tc.shows, &p.shown)
			}
			if tc.keeps != "" {
				if _, err := os.Stat(filepath.Join(p.dir, tc.keeps)); err != nil {
					t.Errorf("there is nothing to look at: %v", err)
				}
				os.RemoveAll(p.output)
			}
			p.nothingLeft(t)
		})
	}

	t.Run("a raw image, grown", func(t *testing.T) {
		t.Parallel()
		p := b.build(t, buildOptions{provision: "touch /made", more: `format = "raw"
  disk_size = "1600M"`})
		if err := p.wait(); err != nil {
			t.Fatalf("%v\n%s", err, &p.shown)
		}
		raw := filepath.Join(p.output, "test.raw")
		if ls := inImage(t, raw, "/"); !strings.Contains(ls, "/made/") {
			t.Errorf("what was made is not in the image: %s", ls)
		}
		if info, err := os.Stat(raw); err != nil || info.Size() != 1600<<20 {
			t.Errorf("the image: %+v, %v", info, err)
		}
		os.RemoveAll(p.output)
		p.nothingLeft(t)
	})

	const sleeps = "echo now provisioning; exec sleep 1000"
	tar := filepath.Join(filepath.Dir(root), "base.tar")
	for _, tc := range []struct{ when, provision, source, more string }{
		{when: "Verifying the checksum", more: fmt.Sprintf("source_checksum = \"sha256:%064d\"", 0)},
		{when: "Copying"},
		{when: "Making an empty disk", source: tar},
		{when: "Unpacking", source: tar},
		{when: "Booting the machine"},
		{when: "The machine is up"},
		{when: "now provisioning", provision: sleeps},
		{when: "Powering the machine off"},
		{when: "Writing"},
	} {
		t.Run("Ctrl-C at "+tc.when, func(t *testing.T) {
			t.Parallel()
			p := b.build(t, buildOptions{provision: cmp.Or(tc.provision, "true"), source: tc.source, more: tc.more})
			p.shown.waitFor(t, tc.when)
			// As a terminal does: to Packer and to its plugin.
			if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if err := p.wait(); err == nil {
				t.Errorf("the build ended well\n%s", &p.shown)
			}
			p.nothingLeft(t)
		})
	}
}

// localPackage installs a package of a repository that it makes.
const localPackage = `mkdir -p /tmp/repo/probe/DEBIAN /tmp/repo/probe/usr/lib/probe
cd /tmp/repo
touch probe/usr/lib/probe/marker
printf 'Package: probe\nVersion: 1\nArchitecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: probe\n' >probe/DEBIAN/control
dpkg-deb --build probe probe.deb
{ cat probe/DEBIAN/control; echo "Filename: ./probe.deb"; echo "Size: $(stat -c %s probe.deb)"; echo "SHA256: $(sha256sum probe.deb | cut -d ' ' -f 1)"; } >Packages
echo 'deb [trusted=yes] copy:/tmp/repo ./' >list
apt="apt-get -o Dir::Etc::sourcelist=/tmp/repo/list -o Dir::Etc::sourceparts=-"
$apt update
$apt install -y probe`

// bench is what all builds share.
type bench struct{ packer, source, plugins string }

// makeSource makes a file system with a Debian that boots fast.
func (b *bench) makeSource(t *testing.T, root string) {
	t.Helper()
	sandbox, err := machine.NewSandbox(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer sandbox.Close()
	const script = `mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir="$0",upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
for unit in postgresql postgresql@ rabbitmq-server epmd ssh; do ln -sf /dev/null /mnt/root/etc/systemd/system/$unit.service; done
mkfs.ext4 -q -d /mnt/root "$1" 1500M`
	if err := sandbox.Run(t.Context(), "sh", "-ec", script, root, b.source); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) installPlugin(t *testing.T) {
	t.Helper()
	plugin := filepath.Join(t.TempDir(), "packer-plugin-xivo")
	run(t, "go", "build", "-o", plugin, "github.com/xivo-mesh/packer-plugin-xivo/cmd/packer-plugin-xivo")
	cmd := exec.Command(b.packer, "plugins", "install", "--path", plugin, "github.com/xivo-mesh/xivo")
	cmd.Env = b.environment(t, t.TempDir())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// environment is Packer's: temporary files below dir, and neither this user's
// settings nor the world.
func (b *bench) environment(t *testing.T, dir string) []string {
	t.Helper()
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o755); err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"), "PACKER_PLUGIN_PATH="+b.plugins,
		"PACKER_CONFIG_DIR="+filepath.Join(dir, "config"), "PACKER_NO_COLOR=1", "CHECKPOINT_DISABLE=1")
}

type buildOptions struct {
	provision string // a shell script
	source    string // "": that of the bench
	aptCache  bool
	more      string // lines of the source block
	args      []string
}

// build is a build under way.
type build struct {
	cmd         *exec.Cmd
	shown       output
	dir, output string
}

func (b *bench) build(t *testing.T, o buildOptions) *build {
	t.Helper()
	// Short: the plugin's socket is in it, and its path has room for 107 bytes.
	dir, err := os.MkdirTemp("", "xivo-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &build{dir: dir}
	p.output = filepath.Join(p.dir, "output")
	cache := "null"
	if o.aptCache {
		cache = fmt.Sprintf("%q", filepath.Join(p.dir, "apt-cache"))
	}
	template := filepath.Join(p.dir, "test.pkr.hcl")
	hcl := fmt.Sprintf(`
source "xivo-nspawn" "test" {
  source_image     = %q
  output_directory = %q
  image_name       = "test"
  network          = "none"
  apt_cache        = %s
  %s
}
build {
  sources = ["source.xivo-nspawn.test"]
  provisioner "shell" {
    inline = [<<EOT
set -e
%s
EOT
    ]
  }
  error-cleanup-provisioner "shell" {
    inline = ["echo the cleanup provisioner ran"]
  }
}
`, cmp.Or(o.source, b.source), p.output, cache, o.more, o.provision)
	if err := os.WriteFile(template, []byte(hcl), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), buildDeadline)
	t.Cleanup(cancel)
	p.cmd = exec.CommandContext(ctx, b.packer, slices.Concat([]string{"build"}, o.args, []string{template})...)
	p.cmd.Env = b.environment(t, p.dir)
	p.cmd.Stdout, p.cmd.Stderr = &p.shown, &p.shown
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	p.cmd.Cancel = func() error { return syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }
	p.cmd.WaitDelay = 10 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *build) wait() error { return p.cmd.Wait() }

// nothingLeft: no process, no mount or loop device, no file.
func (p *build) nothingLeft(t *testing.T) {
	t.Helper()
	if _, err := os.Stat(p.output); err == nil {
		t.Errorf("the output folder is still there")
	}
	names, err := filepath.Glob(filepath.Join(p.dir, "tmp", "*"))
	// Packer's own provisioner forgets its script when it is interrupted late.
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(filepath.Base(name), "packer-shell") })
	if err != nil || len(names) > 0 {
		t.Errorf("temporary files: %s, %v", names, err)
	}
	var left string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if left = p.using(); left == "" {
			return
		}
	}
	t.Errorf("still there: %s\n%s", left, &p.shown)
}

// using names what still has to do with the build's folder.
func (p *build) using() string {
	var found []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, name := range files {
		if raw, _ := os.ReadFile(name); bytes.Contains(raw, []byte(p.dir)) {
			found = append(found, name)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if bytes.Contains(environ, []byte("TMPDIR="+p.dir)) {
			line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			found = append(found, dir+" "+string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})))
		}
	}
	return strings.Join(found, "\n")
}

// output is what a build shows, to be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func (o *output) waitFor(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(buildDeadline); !strings.Contains(o.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q was never shown:\n%s", text, o)
		}
	}
}

// inImage lists a folder of a disk that is one file system.
func inImage(t *testing.T, raw, dir string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", "ls -p "+dir, raw).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}
