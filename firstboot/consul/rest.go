package consul

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// ExportAtRest exports the KV of a Consul that does not run, as Export does. A
// private agent on loopback reads a copy of its data: the original is not
// touched, and nobody is joined. ctx bounds the whole.
func ExportAtRest(ctx context.Context, p *platform.Platform, file string) (err error) {
	if _, err := os.Stat(p.Path(platform.ConsulDataDir, "raft")); err != nil {
		return fmt.Errorf("consul: export the KV: no data to read it from: %w", err)
	}
	pids, err := runningAgents(p)
	if err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	if len(pids) > 0 {
		return fmt.Errorf("consul: export the KV at rest: it runs (pid %s): stop it, or use `xivo-firstboot run`", strings.Join(pids, " "))
	}

	dir, err := os.MkdirTemp(p.Path(platform.StateDir), ".consul-*")
	if err != nil {
		return fmt.Errorf("consul: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	agent, err := privateAgent(p, dir)
	if err != nil {
		return err
	}
	if err := agent.cmd.Start(); err != nil {
		return fmt.Errorf("consul: start a private agent: %w", err)
	}
	defer func() {
		agent.cmd.Process.Kill()
		agent.cmd.Wait()
	}()
	if err := agent.client.WaitLeader(ctx); err != nil {
		return fmt.Errorf("%w; the private agent said: %s", err, lastLine(agent.log.String()))
	}
	return agent.client.Export(ctx, file)
}

type private struct {
	cmd    *exec.Cmd
	log    *strings.Builder
	client *Client
}

// privateAgent prepares an agent on a copy of the data, with the datacenter and
// the token of the original and free ports on loopback.
func privateAgent(p *platform.Platform, dir string) (*private, error) {
	data := filepath.Join(dir, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{"raft", "node-id"} {
		from := p.Path(platform.ConsulDataDir, name)
		st, err := os.Stat(from)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil && st.IsDir() {
			err = os.CopyFS(filepath.Join(data, name), os.DirFS(from))
		} else if err == nil {
			var raw []byte
			if raw, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(filepath.Join(data, name), raw, 0o600)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("consul: copy %s: %w", from, err)
		}
	}

	original, err := readConfiguration(p)
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	config := map[string]any{
		"datacenter":         original.Datacenter,
		"acl_datacenter":     original.Datacenter,
		"acl_default_policy": "deny",
		"acl_master_token":   original.ACLMasterToken,
		"node_name":          "xivo-firstboot-export",
		"server":             true,
		"bootstrap_expect":   1,
		"bind_addr":          "127.0.0.1",
		"client_addr":        "127.0.0.1",
		"data_dir":           data,
		"cert_file":          p.Path(platform.CertificateFile),
		"key_file":           p.Path(platform.CertificateKey),
		"ports":              map[string]int{"dns": -1, "http": -1, "https": ports[0], "server": ports[1], "serf_lan": ports[2], "serf_wan": ports[3]},
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return nil, err
	}

	client, err := dial(p, fmt.Sprintf("127.0.0.1:%d", ports[0]), original.ACLMasterToken)
	if err != nil {
		return nil, err
	}
	log := &strings.Builder{}
	cmd := exec.Command("consul", "agent", "-config-file", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return &private{cmd, log, client}, nil
}

// freePorts asks the kernel for ports that nobody uses now, for TCP and UDP.
func freePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}
