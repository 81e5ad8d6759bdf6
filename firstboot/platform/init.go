package platform

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Run runs a command of the server, without a shell, and returns what it
// printed. The error carries the last line that the command said.
func Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	// A daemon that inherits our pipes must not keep us here.
	cmd.WaitDelay = 5 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		said := strings.TrimSpace(stderr.String())
		if said == "" {
			said = strings.TrimSpace(string(out))
		}
		if i := strings.LastIndexByte(said, '\n'); i >= 0 {
			said = said[i+1:]
		}
		return string(out), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return string(out), nil
}

func detectInit(root string) Init {
	if _, err := os.Stat(filepath.Join(root, "run/systemd/system")); err == nil {
		return systemd{}
	}
	return sysvinit{}
}

// HasSystemd says whether systemd is the init system.
func (p *Platform) HasSystemd() bool {
	_, ok := p.Init.(systemd)
	return ok
}

// WaitBooted waits until systemd has started all that a boot starts. Where there
// is no systemd to ask, it does not wait.
func (p *Platform) WaitBooted(ctx context.Context) error {
	if !p.HasSystemd() {
		return nil
	}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		// It exits non-zero in every state but "running".
		state, _ := Run(ctx, "systemctl", "is-system-running")
		if state = strings.TrimSpace(state); state != "initializing" && state != "starting" {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("this machine is still booting (%s): `systemctl list-jobs` says what is missing", state)
		case <-again.C:
		}
	}
}

// systemd: jessie and later (XiVO 15.20+).
type systemd struct{}

func (systemd) do(ctx context.Context, args ...string) error {
	_, err := Run(ctx, "systemctl", args...)
	return err
}

func (s systemd) Start(ctx context.Context, service string) error { return s.do(ctx, "start", service) }
func (s systemd) Stop(ctx context.Context, service string) error  { return s.do(ctx, "stop", service) }
func (s systemd) Restart(ctx context.Context, service string) error {
	return s.do(ctx, "restart", service)
}

func (s systemd) Active(ctx context.Context, service string) (bool, error) {
	out, err := Run(ctx, "systemctl", "is-active", service)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return strings.TrimSpace(out) == "active", nil
}

func (s systemd) SetEnvironment(ctx context.Context, key, value string) error {
	return s.do(ctx, "set-environment", key+"="+value)
}

func (s systemd) Environment(ctx context.Context, key string) (string, error) {
	out, err := Run(ctx, "systemctl", "show-environment")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return v, nil
		}
	}
	return "", nil
}

// sysvinit: wheezy (XiVO 15.19).
type sysvinit struct{}

func (sysvinit) do(ctx context.Context, service, verb string) error {
	_, err := Run(ctx, "service", service, verb)
	return err
}

func (s sysvinit) Start(ctx context.Context, service string) error {
	return s.do(ctx, service, "start")
}
func (s sysvinit) Stop(ctx context.Context, service string) error { return s.do(ctx, service, "stop") }
func (s sysvinit) Restart(ctx context.Context, service string) error {
	return s.do(ctx, service, "restart")
}

func (s sysvinit) Active(ctx context.Context, service string) (bool, error) {
	err := s.do(ctx, service, "status")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, err
	}
	return err == nil, nil
}

func (sysvinit) SetEnvironment(context.Context, string, string) error { return nil }
func (sysvinit) Environment(context.Context, string) (string, error)  { return "", nil }
