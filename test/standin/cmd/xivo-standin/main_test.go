package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"no command says what it is":      {nil, 0, "This is not XiVO", ""},
		"an unknown command":              {[]string{"asterisk"}, 2, "", "unknown command"},
		"an unknown flag":                 {[]string{"confd", "-nope"}, 2, "", "nope"},
		"help of a daemon":                {[]string{"dird", "-h"}, 0, "", "xivo-standin dird"},
		"ctid without an identity":        {[]string{"ctid", "-release", "16.02"}, 1, "", "XIVO_UUID"},
		"ctid that asks the database":     {[]string{"ctid", "-release", "16.01", "-database", "postgresql://127.0.0.1:1/none"}, 1, "", "infos.uuid"},
		"confd of no release":             {[]string{"confd", "-release", "latest"}, 1, "", `"latest" is no release`},
		"confd without a certificate":     {[]string{"confd", "-release", "16.03", "-certificate", "/nonexistent"}, 1, "", "/nonexistent"},
		"client without what to do":       {[]string{"client"}, 2, "", "client watch"},
		"client with a user of no number": {[]string{"client", "watch", "uuid", "alice"}, 2, "", "client watch"},
		"client to nowhere":               {[]string{"client", "-address", "127.0.0.1:1", "set", "1", "away"}, 1, "", "connect to the xivo-ctid stand-in"},
		"units without a folder":          {[]string{"units"}, 2, "", "units FOLDER"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			code := run(t.Context(), c.args, func(string) string { return "" }, &stdout, &stderr)
			if code != c.code || !strings.Contains(stdout.String(), c.stdout) || !strings.Contains(stderr.String(), c.stderr) {
				t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", code, c.code, &stdout, &stderr)
			}
		})
	}
}

func TestRunWritesUnits(t *testing.T) {
	dir := t.TempDir()
	if code := run(t.Context(), []string{"units", dir}, nil, os.Stdout, os.Stderr); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "xivo-ctid.service")); err != nil || !bytes.Contains(text, []byte("[Service]")) {
		t.Errorf("%q %v", text, err)
	}
}
