package cloudinit

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

func units(t *testing.T) map[string]map[string][]string {
	t.Helper()
	all := map[string]map[string][]string{}
	for _, f := range ImageFiles() {
		if path.Ext(f.Path) == ".service" {
			all[path.Base(f.Path)] = parseUnit(string(f.Content))
		}
	}
	return all
}

func TestImageFiles(t *testing.T) {
	modes := map[string]string{}
	for _, f := range ImageFiles() {
		modes[f.Path] = f.Mode.String()
	}
	want := map[string]string{
		"/lib/systemd/system/xivo-firstboot.service":        "-rw-r--r--",
		"/lib/systemd/system/xivo-firstboot-settle.service": "-rw-r--r--",
		"/lib/systemd/system/xivo-mesh.service":             "-rw-r--r--",
		"/lib/systemd/system/xivo-overlay-address.service":  "-rw-r--r--",
		"/lib/systemd/system/xivo-overlay.service":          "-rw-r--r--",
		"/etc/cloud/cloud.cfg.d/90_xivo-firstboot.cfg":      "-rw-r--r--",
		"/etc/cloud/clean.d/50-xivo-firstboot":              "-rwxr-xr-x",
	}
	if diff := cmp.Diff(want, modes); diff != "" {
		t.Error(diff)
	}
	for _, name := range Units() {
		if modes[path.Join(unitDir, name)] == "" {
			t.Errorf("%s is to be enabled, and not there", name)
		}
	}
}

func TestUnits(t *testing.T) {
	all := units(t)
	for name, command := range map[string]string{
		"xivo-firstboot.service":        "become",
		"xivo-firstboot-settle.service": "settle",
		"xivo-mesh.service":             "converge --watch",
	} {
		u := all[name]
		if got := strings.Join(u["Service.ExecStart"], " "); got != BinaryPath+" "+command {
			t.Errorf("%s runs %q", name, got)
		}
		if !slices.Equal(u["Service.SuccessExitStatus"], []string{"3"}) {
			t.Errorf("%s: exit code 3 (joining, waiting) is not a success", name)
		}
		oneshot := slices.Equal(u["Service.Type"], []string{"oneshot"})
		if oneshot && (u["Service.TimeoutStartSec"] == nil || u["Service.RemainAfterExit"] == nil || u["Unit.RefuseManualStop"] == nil) {
			t.Errorf("%s: a oneshot without end, that runs twice, or whose stop takes telephony with it", name)
		}
		if oneshot && u["Service.Restart"] != nil {
			t.Errorf("%s: systemd before 244 does not load a oneshot that restarts", name)
		}
	}
	for _, by := range append(all["xivo-firstboot-settle.service"]["Unit.Requires"], all["xivo-firstboot.service"]["Unit.Requires"]...) {
		if all[by] == nil {
			t.Errorf("%s is required: to restart it would stop XiVO's daemons", by)
		}
	}
}

func TestWhatIsHeldIsOrderedAfterWhatHoldsIt(t *testing.T) {
	all := units(t)
	for name, u := range all {
		for _, daemon := range u["Install.RequiredBy"] {
			if !slices.Contains(u["Unit.Before"], daemon) {
				t.Errorf("%s requires %s, but may start before it", daemon, name)
			}
		}
	}
	for _, daemon := range all["xivo-firstboot-settle.service"]["Unit.Before"] {
		if !slices.Contains(all["xivo-firstboot-settle.service"]["Install.RequiredBy"], daemon) {
			t.Errorf("%s waits for settle, but is not held when that fails", daemon)
		}
		if !slices.Contains(all["xivo-mesh.service"]["Unit.After"], daemon) {
			t.Errorf("xivo-mesh may start before %s", daemon)
		}
	}
}

// TestOrderingHasNoCycle includes the ordering of the units that ours name, as
// Debian and XiVO ship them.
func TestOrderingHasNoCycle(t *testing.T) {
	after := map[string][]string{
		"cloud-init.service":      {"cloud-init-local.service"},
		"network-online.target":   {"network.target", "cloud-init.service"},
		"postgresql.service":      {"network.target", "basic.target"},
		"consul.service":          {"network-online.target"},
		"rabbitmq-server.service": {"network.target"},
		"monit.service":           {"network-online.target"},
		"cloud-config.service":    {"network-online.target"},
		"cloud-final.service":     {"multi-user.target", "cloud-config.service"},
		"xivo-ctid.service":       {"rabbitmq-server.service", "postgresql.service", "asterisk.service"},
		"basic.target":            {"sysinit.target"},
		"sysinit.target":          {"cloud-init.service"},
	}
	// Our units have systemd's default dependencies.
	for name, u := range units(t) {
		after[name] = append(after[name], "basic.target")
		after[name] = append(after[name], u["Unit.After"]...)
		for _, b := range u["Unit.Before"] {
			after[b] = append(after[b], name)
		}
		for _, target := range u["Install.WantedBy"] {
			// A target is ordered after what it wants.
			after[target] = append(after[target], name)
		}
	}
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(name string, trail []string)
	visit = func(name string, trail []string) {
		trail = append(trail, name)
		switch state[name] {
		case visiting:
			t.Errorf("a cycle: %s", strings.Join(trail, " after "))
			return
		case done:
			return
		}
		state[name] = visiting
		for _, before := range after[name] {
			visit(before, trail)
		}
		state[name] = done
	}
	for name := range after {
		visit(name, nil)
	}
}

func TestLinksAreThoseOfSystemctlEnable(t *testing.T) {
	made := map[string]string{}
	for _, l := range Links() {
		made[l.Path] = l.Target
	}
	for link, target := range map[string]string{
		"/etc/systemd/system/consul.service.requires/xivo-firstboot.service":           "/lib/systemd/system/xivo-firstboot.service",
		"/etc/systemd/system/rabbitmq-server.service.requires/xivo-firstboot.service":  "/lib/systemd/system/xivo-firstboot.service",
		"/etc/systemd/system/xivo-ctid.service.requires/xivo-firstboot-settle.service": "/lib/systemd/system/xivo-firstboot-settle.service",
		"/etc/systemd/system/multi-user.target.wants/xivo-mesh.service":                "/lib/systemd/system/xivo-mesh.service",
	} {
		if made[link] != target {
			t.Errorf("%s leads to %q", link, made[link])
		}
	}

	systemctl, err := exec.LookPath("systemctl")
	if err != nil {
		t.Skip("no systemctl here to compare with")
	}
	root := imageRoot(t)
	if out, err := exec.Command(systemctl, append([]string{"--root=" + root, "enable"}, Units()...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	enabled := map[string]string{}
	links, _ := filepath.Glob(filepath.Join(root, enabledDir, "*.*", "*"))
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			t.Fatal(err)
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(strings.TrimPrefix(link, root)), target)
		}
		enabled[strings.TrimPrefix(link, root)] = target
	}
	if diff := cmp.Diff(enabled, made); diff != "" {
		t.Error(diff)
	}
}

func TestSystemdAcceptsTheUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here")
	}
	root := imageRoot(t)
	var files []string
	for _, name := range Units() {
		file := filepath.Join(root, unitDir, name)
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// It looks for the program, which is not on this machine.
		content = []byte(strings.ReplaceAll(string(content), BinaryPath, "/bin/true"))
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "xivo-") {
		t.Errorf("%v: %s", err, out)
	}
}

// imageRoot lays the image's files out below a folder.
func imageRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, f := range ImageFiles() {
		name := filepath.Join(root, f.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, f.Content, f.Mode); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestCloudConfigOfTheImage(t *testing.T) {
	content, err := image.ReadFile("image/etc/cloud/cloud.cfg.d/90_xivo-firstboot.cfg")
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := yaml.Unmarshal(content, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"preserve_hostname": false, "manage_etc_hosts": false, "ssh_deletekeys": true}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCleanForgetsTheInstanceAndKeepsTheImage(t *testing.T) {
	const state = "/var/lib/xivo-firstboot"
	root := imageRoot(t)
	script := filepath.Join(root, "/etc/cloud/clean.d/50-xivo-firstboot")
	content, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), "cd "+state+" ") {
		t.Fatal("the script works in another folder")
	}
	content = []byte(strings.ReplaceAll(string(content), "cd "+state, "cd "+filepath.Join(root, state)))
	if err := os.WriteFile(script, content, 0o755); err != nil {
		t.Fatal(err)
	}
	// Without systemctl: it would stop the watch of the machine that tests.
	tools := t.TempDir()
	rm, err := exec.LookPath("rm")
	if err == nil {
		err = os.Symlink(rm, filepath.Join(tools, "rm"))
	}
	if err != nil {
		t.Fatal(err)
	}
	clean := func() {
		t.Helper()
		cmd := exec.Command(script)
		cmd.Env = []string{"PATH=" + tools}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}

	clean() // where there is nothing yet
	all := []string{"document.yml", "journal.json", "kv-restored.json", "kv.json", "marks.json", "members.json", "status.json"}
	for _, name := range all {
		put(t, root, filepath.Join(state, name), "", 0)
	}
	left := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(root, state))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	clean()
	if diff := cmp.Diff(all, left()); diff != "" {
		t.Errorf("never sealed: its clones would not know what they are: %s", diff)
	}
	put(t, root, filepath.Join(state, "seal.json"), "", 0)
	clean()
	if diff := cmp.Diff([]string{"kv-restored.json", "kv.json", "seal.json"}, left()); diff != "" {
		t.Error(diff)
	}
}
