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

// Broker is a RabbitMQ of its own on an address of loopback.
type Broker struct {
	// Host is its AMQP listener, as address:port; AMQP the URL of its guest.
	Host, AMQP string
	// Management is the port that a configuration may give to its HTTP API.
	Management int

	dir     string
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
	if err := os.Chown(dir, int(owner.Uid), int(owner.Gid)); err != nil {
		t.Fatal(err)
	}

	port, distribution, mapper := freePort(t), freePort(t), freePort(t)
	inside := strings.TrimPrefix(dir, filepath.Clean(root))
	b := &Broker{
		Host:       fmt.Sprintf("%s:%d", ip, port),
		AMQP:       fmt.Sprintf("amqp://guest:guest@%s:%d/", ip, port),
		Management: freePort(t),
		dir:        dir,
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
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + inside + "/enabled_plugins",
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
		"enabled_plugins": "[" + strings.Join(plugins, ",") + "].\n",
	} {
		if err := os.WriteFile(filepath.Join(b.dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.cmd = exec.Command(b.command[0], b.command[1:]...)
	b.cmd.Env, b.cmd.Stdout, b.cmd.Stderr = b.env, b.said, b.said
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
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
