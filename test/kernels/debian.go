// Package kernels runs firstboot's network on the kernels that XiVO ran on: in QEMU
// with those of Debian that can be had, and elsewhere behind a filter that leaves of
// this machine's kernel what theirs had. docs/xivo/kernels.md has what was seen.
package kernels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// release is a Debian with its kernel, and ip and iptables of the same age.
type release struct {
	suite  string
	arch   string // Debian's name
	mirror string // as in sources.list
}

// mirror has the releases that Debian still keeps with the others. Wheezy, jessie and
// stretch are in its archive only: whoever reaches one names it in XIVO_KERNELS_MIRROR.
const mirror = "http://deb.debian.org/debian"

// The kernel is that of a meta package, by architecture.
var kernels = map[string]string{"amd64": "linux-image-amd64", "i386": "linux-image-686-pae"}

// iproute is the package of ip; its name changed after wheezy.
func (r release) iproute() string {
	if r.suite == "wheezy" {
		return "iproute"
	}
	return "iproute2"
}

func (r release) String() string { return r.suite + "/" + r.arch }

// parseRelease reads "wheezy/amd64"; without an architecture it is amd64.
func parseRelease(text string) (release, error) {
	suite, arch, _ := strings.Cut(text, "/")
	r := release{suite, cmp.Or(arch, "amd64"), cmp.Or(os.Getenv("XIVO_KERNELS_MIRROR"), mirror)}
	if suite == "" || kernels[r.arch] == "" {
		return r, fmt.Errorf("%q is no release with a kernel: write it like wheezy/amd64 or wheezy/i386", text)
	}
	return r, nil
}

// goArch is what Go calls the architecture.
func (r release) goArch() string {
	if r.arch == "i386" {
		return "386"
	}
	return r.arch
}

// unpack returns a folder with the release's kernel in kernel/, and ip, iptables and
// what they need in tools/. Nothing of it is installed.
func (r release) unpack(ctx context.Context) (string, error) {
	key := cache.NewKey("kernels 1", r.suite, r.arch, r.mirror, r.iproute())
	return cache.Make("kernels-"+r.suite+"-"+r.arch, key, func(dir string) error {
		a, err := r.newApt(filepath.Join(dir, "apt"))
		if err != nil {
			return err
		}
		if _, err := a.run(ctx, "apt-get", "update"); err != nil {
			return err
		}
		out, err := a.run(ctx, "apt-cache", "depends", kernels[r.arch])
		if err != nil {
			return err
		}
		image := regexp.MustCompile(`(?m)^ *Depends: (linux-image-\S+)$`).FindStringSubmatch(out)
		if image == nil {
			return fmt.Errorf("%s names no kernel: %s", kernels[r.arch], out)
		}
		// The kernel alone: what it depends on makes a machine bootable.
		if _, err := a.run(ctx, "apt-get", "download", image[1]); err != nil {
			return err
		}
		if err := a.unpack(ctx, a.dir, filepath.Join(dir, "kernel")); err != nil {
			return err
		}
		if _, err := a.run(ctx, "apt-get", "install", "--yes", "--download-only", "--no-install-recommends", r.iproute(), "iptables"); err != nil {
			return err
		}
		if err := a.unpack(ctx, filepath.Join(a.dir, "archives"), filepath.Join(dir, "tools")); err != nil {
			return err
		}
		return os.RemoveAll(a.dir)
	})
}

// apt is an apt of its own, which knows nothing of what this machine has.
type apt struct{ dir string }

func (r release) newApt(dir string) (apt, error) {
	options := "check-valid-until=no"
	if r.mirror != mirror {
		// The keys that signed what is in the archive have run out.
		options += " trusted=yes"
	}
	var errs []error
	for _, d := range []string{"lists/partial", "archives/partial"} {
		errs = append(errs, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for name, text := range map[string]string{
		"status":       "",
		"sources.list": fmt.Sprintf("deb [%s] %s %s main\n", options, r.mirror, r.suite),
		"apt.conf": fmt.Sprintf(`APT::Architecture %q; APT::Architectures { %q; }; APT::Sandbox::User "root";
Dir::State %q; Dir::State::status "status"; Dir::State::lists "lists"; Dir::Cache %[3]q; Dir::Cache::archives "archives";
Dir::Etc::sourcelist %q; Dir::Etc::sourceparts "/dev/null"; Dir::Etc::preferencesparts "/dev/null";
Acquire::Retries "3"; Acquire::Languages "none"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
`, r.arch, r.arch, dir, filepath.Join(dir, "sources.list")),
	} {
		errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	return apt{dir}, errors.Join(errs...)
}

func (a apt) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = a.dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(a.dir, "apt.conf"), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// unpack unpacks all packages of a folder.
func (a apt) unpack(ctx context.Context, from, to string) error {
	packages, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err == nil && len(packages) == 0 {
		err = fmt.Errorf("apt-get brought no package to %s", from)
	}
	if err != nil {
		return err
	}
	for _, p := range packages {
		if _, err := a.run(ctx, "dpkg-deb", "--extract", p, to); err != nil {
			return err
		}
	}
	return nil
}
