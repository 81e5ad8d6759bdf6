package platform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is asked of the init system of a 15.19, where there is no systemd, and how
// its answers are read.
func TestSysvinit(t *testing.T) {
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	script := `#!/bin/sh
echo "$*" >>"` + asked + `"
case "$*" in
"consul status") exit 3 ;;
"broken "*) echo "$1: no room" >&2; exit 1 ;;
esac
`
	if err := os.WriteFile(filepath.Join(dir, "service"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))

	s, ctx := sysvinit{}, t.Context()
	for _, c := range []struct {
		want string
		do   func() error
	}{
		{"consul stop", func() error { return s.Stop(ctx, "consul") }},
		{"rabbitmq-server start", func() error { return s.Start(ctx, "rabbitmq-server") }},
		{"xivo-dird restart", func() error { return s.Restart(ctx, "xivo-dird") }},
	} {
		if err := c.do(); err != nil {
			t.Errorf("%s: %v", c.want, err)
		}
		if got, err := os.ReadFile(asked); err != nil || strings.TrimSpace(string(got)) != c.want {
			t.Errorf("asked was %q, %v; want %q", got, err, c.want)
		}
		os.Remove(asked)
	}
	if err := s.Start(ctx, "broken"); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("a service that does not start: %v, want what it said", err)
	}
	for service, want := range map[string]bool{"consul": false, "rabbitmq-server": true} {
		if up, err := s.Active(ctx, service); err != nil || up != want {
			t.Errorf("%s is up: %t, %v", service, up, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := s.Active(ctx, "consul"); err == nil {
		t.Error("nobody could be asked, and that is taken for a service that is down")
	}
}
