package e2e

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// TestRelease makes the release in two places, and uses what it gets: in Packer,
// and on a XiVO.
func TestRelease(t *testing.T) {
	needsLab(t)
	t.Parallel()
	maker, err := recipe.New(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	release := t.TempDir()
	var builds errgroup.Group
	places := []string{filepath.Join(release, "one"), filepath.Join(release, "another/place")}
	for _, place := range places {
		builds.Go(func() error { return makeRelease(t.Context(), maker.Repo, place) })
	}
	if err := builds.Wait(); err != nil {
		t.Fatal(err)
	}
	release = filepath.Join(places[0], "dist/release")

	t.Run("the same sources give the same bytes", func(t *testing.T) {
		read := func(place string) string {
			sums, err := os.ReadFile(filepath.Join(place, "dist/release/SHA256SUMS"))
			if err != nil {
				t.Fatal(err)
			}
			return string(sums)
		}
		if diff := cmp.Diff(read(places[0]), read(places[1])); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the checksums are right", func(t *testing.T) {
		for _, name := range []string{"SHA256SUMS", "packer-plugin-xivo_v" + version.Version.String() + "_SHA256SUMS"} {
			check := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", name)
			check.Dir = release
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
	})
	t.Run("Packer takes the plugin", func(t *testing.T) { packerTakes(t, maker, release) })
	t.Run("a XiVO takes the package", func(t *testing.T) { xivoTakes(t, maker, release) })
}

// makeRelease runs dist in a copy of the checkout.
func makeRelease(ctx context.Context, repo, place string) error {
	tree := os.DirFS(repo)
	err := fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case name == ".git" || name == "dist" || strings.HasPrefix(name, "packer/embedded/linux_"):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			return os.MkdirAll(filepath.Join(place, name), 0o755)
		case !d.Type().IsRegular():
			return nil
		}
		raw, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(place, name), raw, 0o644)
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "run", "./cmd/dist", "-platforms=linux/amd64")
	cmd.Dir = place
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1500000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dist: %w: %s", err, out)
	}
	return nil
}

// packerTakes lays the plugin out as `packer init` does what it downloads.
func packerTakes(t *testing.T, maker *recipe.Maker, release string) {
	packer, err := maker.Tool(t.Context(), "packer")
	if err != nil {
		t.Fatal(err)
	}
	plugins := t.TempDir()
	dir := filepath.Join(plugins, "github.com/xivo-mesh/xivo")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("packer-plugin-xivo_v%s_x5.0_linux_amd64", version.Version)
	archive, err := zip.OpenReader(filepath.Join(release, name+".zip"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	program, err := fs.ReadFile(archive, name)
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"amd64", "i386"} {
		// Packages have the same builds.
		extract := exec.CommandContext(t.Context(), "sh", "-c", `dpkg-deb --fsys-tarfile *_"$0".deb | tar -xO ./usr/sbin/xivo-firstboot`, arch)
		extract.Dir = release
		carried, err := extract.Output()
		if err != nil || len(carried) == 0 {
			t.Fatalf("the program in the package for %s: %d bytes, %v", arch, len(carried), err)
		}
		if !bytes.Contains(program, carried) {
			t.Errorf("the plugin does not carry xivo-firstboot for %s", arch)
		}
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, name), program, 0o755),
		os.WriteFile(filepath.Join(dir, name+"_SHA256SUM"), fmt.Appendf(nil, "%x", sha256.Sum256(program)), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	template := filepath.Join(t.TempDir(), "own.pkr.hcl")
	text := fmt.Sprintf(`packer {
  required_plugins {
    xivo = {
      source  = "github.com/xivo-mesh/xivo"
      version = "= %s"
    }
  }
}

source "null" "machine" {
  communicator = "none"
}

build {
  sources = ["source.null.machine"]

  # Without firstboot_binary: the plugin has it inside.
  provisioner "xivo-seal" {}
}
`, version.Version)
	if err := os.WriteFile(template, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	validate := exec.CommandContext(t.Context(), packer, "validate", template)
	validate.Env = append(os.Environ(), "CHECKPOINT_DISABLE=1", "PACKER_CONFIG_DIR="+t.TempDir(), "PACKER_PLUGIN_PATH="+plugins)
	if out, err := validate.CombinedOutput(); err != nil {
		t.Errorf("packer validate: %v: %s", err, out)
	}
}

// xivoTakes installs the package on a XiVO that nobody asked to change, boots it,
// and removes the package again. The XiVO never notices.
func xivoTakes(t *testing.T, maker *recipe.Maker, release string) {
	debs, err := filepath.Glob(filepath.Join(release, "*_amd64.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("packages: %q, %v", debs, err)
	}
	raw, err := os.ReadFile(debs[0])
	if err != nil {
		t.Fatal(err)
	}
	layer := t.TempDir()
	// A folder that is a machine's /, too.
	if err := os.Chmod(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(layer, "xivo-firstboot.deb"), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	debian, xivo, err := maker.XiVO(t.Context(), recipe.Version)
	if err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(t.Context(), debian, xivo, layer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeLab(t, l) })
	m, err := l.Start(t.Context(), lab.Node{Name: "xivo", Address: scenario.Address(1)})
	if err != nil {
		t.Fatal(err)
	}
	run := func(script string) string {
		t.Helper()
		out, err := m.Run(t.Context(), "bash", "-ec", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	running := func() {
		t.Helper()
		if err := m.WaitRunning(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
	}
	const (
		// Whoever is restarted has another one.
		processes = `for unit in postgresql@15-main rabbitmq-server consul xivo-confd xivo-dird xivo-ctid; do
echo "$unit $(systemctl show --property=MainPID --value $unit)"; done`
		services = `systemctl is-active postgresql rabbitmq-server consul xivo-confd xivo-dird xivo-ctid | sort -u`
		// What XiVO is configured by.
		settings = `find /etc /var/lib/consul/*token* /usr/share/xivo -xdev -type f ! -path '*xivo-firstboot*' ! -name 'xivo-mesh*' \
! -name '*-' ! -path '/etc/ssh/*' ! -path '/etc/systemd/system/*.requires/*' -print0 | sort -z | xargs -0 sha256sum`
	)
	unchanged := func(when, what, before, script string) {
		t.Helper()
		if diff := cmp.Diff(before, run(script)); diff != "" {
			t.Errorf("%s changed when %s:\n%s", what, when, diff)
		}
	}
	reboot := func() {
		t.Helper()
		if err := m.Poweroff(deadline(t, lab.Hang)); err != nil {
			t.Fatal(err)
		}
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		running()
	}

	running()
	// The lab's Debian leaves out what nobody reads there.
	run("rm -f /etc/dpkg/dpkg.cfg.d/99mmdebstrap")
	pids, files := run(processes), run(settings)

	run("dpkg --install /xivo-firstboot.deb")
	unchanged("the package was installed", "a process", pids, processes)
	unchanged("the package was installed", "a file", files, settings)
	for _, tc := range []struct{ name, script, want string }{
		{"the program", "xivo-firstboot version", version.Version.String()},
		{"its man page", "zcat /usr/share/man/man8/xivo-firstboot-run.8.gz", "XIVO-FIRSTBOOT"},
		{"its completion", ". /usr/share/bash-completion/completions/xivo-firstboot; complete -p xivo-firstboot", "xivo-firstboot"},
		{"its units, enabled", "systemctl is-enabled xivo-firstboot xivo-firstboot-settle xivo-mesh | sort -u", "enabled"},
		{"what cloud-init clean runs", "stat -c %A /etc/cloud/clean.d/50-xivo-firstboot", "-rwxr-xr-x"},
		{"nothing that dpkg would complain about", "dpkg --verify xivo-firstboot; echo fine", "fine"},
		{"what it does here", "xivo-firstboot status 2>&1 || true", "left as it is"},
	} {
		t.Run("it has "+tc.name, func(t *testing.T) {
			if out := run(tc.script); !strings.Contains(out, tc.want) {
				t.Errorf("got %q, want %q", out, tc.want)
			}
		})
	}
	run("systemctl restart consul xivo-dird") // a person does, and starts our units with it
	unchanged("Consul was restarted", "a file", files, settings)

	reboot()
	unchanged("it was booted", "a file", files, settings)
	unchanged("it was booted", "a service", "active", services)

	pids = run(processes)
	run("dpkg --remove xivo-firstboot")
	unchanged("the package was removed", "a process", pids, processes)
	run("mkdir -p /var/lib/xivo-firstboot /etc/xivo-firstboot && touch /var/lib/xivo-firstboot/journal.json /etc/xivo-firstboot/config.yml")
	reboot()
	unchanged("it was booted without the package", "a file", files, settings)
	unchanged("it was booted without the package", "a service", "active", services)

	// Consul of a node listens at an address of the mesh's, which stays.
	run(`dpkg --install /xivo-firstboot.deb; mkdir -p /var/lib/xivo-firstboot/mesh
echo '{"range":"100.88.0.0/16","address":"100.88.3.4","try":0,"uuid":"5b4f0f1a-6c1b-4f0a-9a53-0d3d1a2b3c4d"}' >/var/lib/xivo-firstboot/mesh/address.json
dpkg --remove xivo-firstboot`)
	reboot()
	if has := run("ip -o -4 address show dev lo"); !strings.Contains(has, " 100.88.3.4/32 ") {
		t.Errorf("after a node lost the package, lo has %s", has)
	}
	unchanged("a node lost the package", "a service", "active", services)
	run(`dpkg --install /xivo-firstboot.deb; ! systemctl is-enabled xivo-mesh-address; ! test -e /etc/systemd/system/xivo-mesh-address.service
rm -r /var/lib/xivo-firstboot/mesh; dpkg --remove xivo-firstboot`)

	run("test -e /var/lib/xivo-firstboot/journal.json && dpkg --purge xivo-firstboot")
	if left := run("find / -xdev \\( -name '*xivo-firstboot*' -o -name 'xivo-mesh*' \\) ! -path '/var/log/*' ! -path /xivo-firstboot.deb"); left != "" {
		t.Errorf("a purge leaves:\n%s", left)
	}
}
