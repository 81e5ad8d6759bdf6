package consul

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// AtRestDir is where the copy of the raft state is while ExportAtRest reads it.
// Only one that was killed leaves it behind, with all of the KV in it.
const AtRestDir = platform.StateDir + "/consul-at-rest"

// keptKeys are the settings that the private server shares with the real one:
// those that its raft log and its API depend on. What would make it look for
// other servers is not among them.
var keptKeys = []string{
	"acl_datacenter", "acl_default_policy", "acl_enforce_version_8", "acl_master_token",
	"advertise_addr", "bootstrap_expect", "cert_file", "datacenter", "key_file",
	"node_name", "performance", "ports", "raft_protocol", "server",
}

// ExportAtRest exports the KV, as Export does, while Consul is stopped: from a
// copy of its raft log, by a server of its own that listens on loopback and
// joins nobody. A clone may so be read without meeting its original. Consul's
// own files are only read. A data folder without a raft log is an error.
func ExportAtRest(ctx context.Context, p *platform.Platform, file string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("consul: export the KV at rest: %w", err)
		}
	}()
	if err := notRunning(p); err != nil {
		return err
	}
	config, err := mergedConfig(p)
	if err != nil {
		return err
	}
	c, err := privateClient(p, config)
	if err != nil {
		return err
	}
	dir := p.Path(AtRestDir)
	defer os.RemoveAll(dir)
	configFile, err := layOut(p, dir, config)
	if err != nil {
		return err
	}

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop, err := startPrivate(configFile, cancel)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.WaitLeader(ctx); err != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return c.Export(ctx, file)
}

// privateClient speaks to the private server: on loopback, with the port and the
// token of the real one.
func privateClient(p *platform.Platform, config map[string]any) (*Client, error) {
	address, err := apiAddress(map[string]any{"ports": config["ports"]})
	if err != nil {
		return nil, err
	}
	token, _ := config["acl_master_token"].(string)
	if token == "" {
		return nil, fmt.Errorf("no acl_master_token in %s", p.Path(platform.ConsulConfigDir))
	}
	return newClient(address, secret.Secret(token), p.Path(platform.CertificateFile)), nil
}

// layOut makes the folder anew, which is root's alone, with the private server's
// data and its configuration, whose file it returns.
func layOut(p *platform.Platform, dir string, config map[string]any) (configFile string, err error) {
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	data := filepath.Join(dir, "data")
	if err := copyAtRest(p, data); err != nil {
		return "", err
	}
	configFile = filepath.Join(dir, "config.json")
	return configFile, writePrivateConfig(configFile, config, data)
}

// copyAtRest copies what makes the server the one that wrote the log. Consul's
// user owns it, and the private server runs as root: nothing but regular files is
// copied, and no link followed.
func copyAtRest(p *platform.Platform, to string) error {
	raft := p.Path(platform.ConsulDataDir, "raft")
	if _, err := os.Lstat(raft); err != nil {
		return fmt.Errorf("no state to read: %w", err)
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	if err := files.CopyTree(raft, filepath.Join(to, "raft")); err != nil {
		return err
	}
	id, err := files.ReadFile(p.Path(platform.ConsulDataDir, "node-id"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // Consul before 0.7.3
	}
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(to, "node-id"), id, 0o600)
}

// writePrivateConfig writes a configuration of what keptKeys names, and of nothing
// else that Consul's user may have put into the real one.
func writePrivateConfig(name string, config map[string]any, data string) error {
	private := map[string]any{
		"bind_addr":            "127.0.0.1",
		"client_addr":          "127.0.0.1",
		"data_dir":             data,
		"disable_update_check": true,
	}
	for _, key := range keptKeys {
		if v, ok := config[key]; ok {
			private[key] = v
		}
	}
	text, err := json.Marshal(private)
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o600)
}

// reason is the line of a server's output that tells why it ended: the last
// error, or what it said last.
func reason(said string) string {
	lines := strings.Split(strings.TrimSpace(said), "\n")
	for _, line := range slices.Backward(lines) {
		if strings.Contains(line, "[ERR") {
			return line
		}
	}
	return lines[len(lines)-1]
}

// startPrivate runs the server until stop, or until we die. When it ends by
// itself, ended hears why.
func startPrivate(config string, ended context.CancelCauseFunc) (stop func(), err error) {
	cmd := exec.Command("consul", "agent", "-config-file", config)
	// Only what it says last is told: it is read when the process is gone.
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		err := cmd.Wait()
		ended(fmt.Errorf("the private server ended: %w: %s", err, reason(said.String())))
	})
	return func() {
		cmd.Process.Kill() // its data is a copy
		wg.Wait()
	}, nil
}
