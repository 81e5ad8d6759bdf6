package standin

import (
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestNotifyReady(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := NotifyReady(); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	for name, socket := range map[string]string{
		"a path":      filepath.Join(t.TempDir(), "notify"),
		"an abstract": "@xivo-standin-test-" + filepath.Base(t.TempDir()),
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			t.Setenv("NOTIFY_SOCKET", socket)
			if err := NotifyReady(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			n, err := l.Read(buf)
			if err != nil || string(buf[:n]) != "READY=1" {
				t.Errorf("systemd was told %q, %v", buf[:n], err)
			}
		})
	}
}

func TestUnits(t *testing.T) {
	all := Units()
	for name, after := range map[string]string{
		"xivo-confd.service": "postgresql.service",
		"xivo-dird.service":  "xivo-confd.service",
		"xivo-ctid.service":  "consul.service rabbitmq-server.service",
	} {
		text := all[name]
		for _, want := range []string{after, "stand-in", "Type=notify", "Restart=no", "ExecStart=/usr/bin/xivo-standin " + strings.TrimSuffix(strings.TrimPrefix(name, "xivo-"), ".service")} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q", name, want)
			}
		}
		if strings.Contains(text, "Environment") {
			t.Errorf("%s sets an environment: XIVO_UUID is systemd's own", name)
		}
	}
	if len(all) != 3 {
		t.Errorf("%d units", len(all))
	}
}

func TestStandinsShareNoCodeWithWhatTheyTest(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./...").Output()
	if err != nil {
		t.Skip("needs the go command:", err)
	}
	for dep := range strings.Lines(string(out)) {
		if strings.Contains(dep, "packer-plugin-xivo/") && !strings.Contains(dep, "packer-plugin-xivo/test/standin") {
			t.Errorf("imports %s", strings.TrimSpace(dep))
		}
	}
}
