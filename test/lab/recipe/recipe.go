// Package recipe makes what the lab's machines are made of, each thing once,
// in the cache: the tools, a Debian, a XiVO's layout on it, the sealed image.
package recipe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
)

// A Maker makes things. Progress of what takes long goes to Log, command output
// included; it is for a person and may be io.Discard.
type Maker struct {
	Repo string // the checkout
	Log  io.Writer
}

// New returns a maker for the checkout that holds the current folder.
func New(log io.Writer) (*Maker, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if raw, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil &&
			strings.HasPrefix(string(raw), "module github.com/xivo-mesh/packer-plugin-xivo\n") {
			return &Maker{Repo: dir, Log: log}, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil, fmt.Errorf("not below a checkout of packer-plugin-xivo: run this from one")
		}
		dir = up
	}
}

// command prepares a command of the host whose output goes to the log, and
// which dies with us.
func (m *Maker) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = m.Repo
	cmd.Stdout, cmd.Stderr = m.Log, m.Log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// run runs a command of the host to its end.
func (m *Maker) run(ctx context.Context, name string, args ...string) error {
	return m.finish(m.command(ctx, name, args...))
}

// finish runs a prepared command. When it fails, the end of what it said is in
// the error.
func (m *Maker) finish(cmd *exec.Cmd) error {
	said := &tail{to: m.Log}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w; its last words:\n%s", filepath.Base(cmd.Path), err, said)
	}
	return nil
}

// tail passes everything on and remembers the end of it.
type tail struct {
	to  io.Writer
	end bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	const limit = 4096
	t.end.Write(p)
	if over := t.end.Len() - limit; over > 0 {
		t.end.Next(over)
	}
	return t.to.Write(p)
}

func (t *tail) String() string { return strings.TrimSpace(t.end.String()) }

// goVersion is part of the key of everything that the Go compiler makes.
func (m *Maker) goVersion(ctx context.Context) (string, error) {
	cmd := m.command(ctx, "go", "env", "GOVERSION", "GOARCH")
	cmd.Stdout = nil
	out, err := cmd.Output()
	return string(out), err
}

// goBuild builds a static program, without anything of the moment or the place
// in it, so that equal sources give equal bytes.
func (m *Maker) goBuild(ctx context.Context, module, pkg, out string) error {
	cmd := m.command(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off")
	if err := m.finish(cmd); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}

// tools are the third-party programs that are pinned below test/tools, each as a
// Go module of its own, and the package that each is built from.
var tools = map[string]string{
	"consul":             "github.com/hashicorp/consul",
	"packer":             "github.com/hashicorp/packer",
	"packer-1.9.4":       "github.com/hashicorp/packer", // the last one of the old plugin protocol alone
	"packer-plugin-qemu": "github.com/hashicorp/packer-plugin-qemu",
}

// Tool returns the path of one of the tools, built from source.
func (m *Maker) Tool(ctx context.Context, name string) (string, error) {
	pkg, known := tools[name]
	if !known {
		return "", fmt.Errorf("no tool %q below test/tools", name)
	}
	version, err := m.goVersion(ctx)
	if err != nil {
		return "", err
	}
	module := filepath.Join(m.Repo, "test/tools", name)
	key := cache.NewKey(version, pkg)
	for _, file := range []string{"go.mod", "go.sum"} {
		if err := key.AddFile(filepath.Join(module, file)); err != nil {
			return "", err
		}
	}
	dir, err := cache.Make("tools/"+name, key, func(dir string) error {
		fmt.Fprintf(m.Log, "building %s from source, some minutes\n", name)
		return m.goBuild(ctx, module, pkg, filepath.Join(dir, name))
	})
	return filepath.Join(dir, name), err
}
