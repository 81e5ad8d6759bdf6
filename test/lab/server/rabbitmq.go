package server

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const pluginsFile = "/etc/rabbitmq/enabled_plugins"

// Broker is a RabbitMQ of its own on an address of loopback.
type Broker struct {
	// Host is its AMQP listener, as address:port; AMQP the URL of its guest.
	Host, AMQP string
	// Root is a folder of its own, with its /etc/rabbitmq/enabled_plugins.
	Root string
	// Management is the port that a configuration may give to its HTTP API.
	Management int

	command []string
	env     []string
	cmd     *exec.Cmd
	said    *bytes.Buffer
}

// RabbitMQ prepares a broker that listens on an IP of loopback. Start runs it;
// it ends with the test, also when that is killed. It needs root, and skips the
// test when there is no Debian root to run from.
func RabbitMQ(t testing.TB, ip string) *Broker {
	t.Helper()
	root := debianRoot(t)
	st, err := os.Stat(filepath.Join(root, "var/lib/rabbitmq"))
	if err != nil {
		t.Fatal(err)
	}
	owner := st.Sys().(*syscall.Stat_t)
	dir, err := os.MkdirTemp(filepath.Join(root, "tmp"), "broker-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(pluginsFile)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}

	port, distribution, mapper := FreePort(t), FreePort(t), FreePort(t)
	inside := strings.TrimPrefix(dir, filepath.Clean(root))
	b := &Broker{
		Host:       fmt.Sprintf("%s:%d", ip, port),
		AMQP:       fmt.Sprintf("amqp://guest:guest@%s:%d/", ip, port),
		Management: FreePort(t),
		Root:       dir,
		said:       new(bytes.Buffer),
		env: []string{
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=" + inside,
			fmt.Sprintf("RABBITMQ_NODENAME=b%d@localhost", port),
			"RABBITMQ_NODE_IP_ADDRESS=" + ip,
			fmt.Sprint("RABBITMQ_NODE_PORT=", port),
			fmt.Sprint("RABBITMQ_DIST_PORT=", distribution),
			fmt.Sprint("ERL_EPMD_PORT=", mapper),
			"ERL_EPMD_ADDRESS=127.0.0.1",
			"RABBITMQ_CONF_ENV_FILE=" + inside + "/none",
			"RABBITMQ_CONFIG_FILE=" + inside + "/rabbitmq",
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + inside + pluginsFile,
			"RABBITMQ_MNESIA_BASE=" + inside + "/mnesia",
			"RABBITMQ_LOG_BASE=" + inside + "/log",
			"RABBITMQ_PID_FILE=" + inside + "/pid",
		},
		// The first process of a PID namespace takes all others with it: the
		// broker's port mapper and its helpers too. It is to die with unshare,
		// and unshare with this test; setpriv arms that anew, because a change
		// of user disarms it.
		command: []string{
			"unshare", "--mount", "--pid", "--fork", "--kill-child", "--root=" + root, "--wd=/", "--mount-proc=/proc",
			"setpriv", fmt.Sprint("--reuid=", owner.Uid), fmt.Sprint("--regid=", owner.Gid), "--clear-groups", "--pdeathsig=KILL",
			"/usr/lib/rabbitmq/bin/rabbitmq-server",
		},
	}
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			t.Logf("the broker on %s said:\n%s", ip, b.said)
		}
	})
	return b
}

// Start runs the broker with this rabbitmq.config and these plugins, on the
// data that it has. It returns before the broker is ready.
func (b *Broker) Start(t testing.TB, config string, plugins ...string) {
	t.Helper()
	for name, content := range map[string]string{
		"rabbitmq.config": config,
		pluginsFile:       "[" + strings.Join(plugins, ",") + "].\n",
	} {
		if err := os.WriteFile(filepath.Join(b.Root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.run(t)
}

// Restart runs the broker again, with the files and the data that it has.
func (b *Broker) Restart(t testing.TB) {
	t.Helper()
	b.Kill()
	b.run(t)
}

func (b *Broker) run(t testing.TB) {
	t.Helper()
	cmd := exec.Command(b.command[0], b.command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = b.env, b.said, b.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.cmd = cmd
}

// Tools is a folder for PATH with the broker's own rabbitmq-plugins and rabbitmqctl.
func (b *Broker) Tools(t testing.TB) string {
	t.Helper()
	folder := t.TempDir()
	for _, tool := range []string{"rabbitmq-plugins", "rabbitmqctl"} {
		script := fmt.Sprintf("#!/bin/sh\nexec env -i '%s' unshare --root='%s' --wd=/ /usr/lib/rabbitmq/bin/%s \"$@\"\n",
			strings.Join(b.env, "' '"), debianRoot(t), tool)
		if err := os.WriteFile(filepath.Join(folder, tool), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// Kill ends the broker as a power cut would. Its data stays.
func (b *Broker) Kill() {
	if b.cmd == nil {
		return
	}
	b.cmd.Process.Kill()
	b.cmd.Wait()
	b.cmd = nil
}
