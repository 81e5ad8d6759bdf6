package rabbitmq

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// broker is a RabbitMQ of its own, below the Debian root XIVO_SERVER_ROOT.
type broker struct {
	ip       string
	amqpPort int
	api      string // of the management API

	dir  string // its files
	cmd  *exec.Cmd
	said *bytes.Buffer
}

func (b *broker) amqpURL() string { return fmt.Sprintf("amqp://guest:guest@%s:%d/", b.ip, b.amqpPort) }
func (b *broker) host() string    { return fmt.Sprintf("%s:%d", b.ip, b.amqpPort) }
func (b *broker) client() *Client { return Dial(URL(b.api)) }

// startBroker starts a RabbitMQ that listens on an IP of loopback, with the
// settings that this package writes, and ends it with the test, also when that
// is killed.
func startBroker(t *testing.T, ip string, plugins ...string) *broker {
	t.Helper()
	root := os.Getenv("XIVO_SERVER_ROOT")
	if root == "" {
		t.Skip("XIVO_SERVER_ROOT names no Debian root with rabbitmq-server")
	}
	if os.Getuid() != 0 {
		t.Skip("a broker in a root of its own needs root")
	}
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
	ports := freePorts(t, 4)
	b := &broker{ip: ip, amqpPort: ports[0], api: fmt.Sprintf("http://127.0.0.1:%d", ports[1]), dir: dir}

	config, _, err := setListener([]byte("[{rabbit, [{disk_free_limit, 100000000}, {heartbeat, 0}]}].\n"),
		strings.Replace(managementListener, "15672", fmt.Sprint(ports[1]), 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "rabbitmq.config"), config, 0o644); err != nil {
		t.Fatal(err)
	}

	inside := strings.TrimPrefix(dir, filepath.Clean(root))
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + inside,
		fmt.Sprintf("RABBITMQ_NODENAME=b%d@localhost", ports[0]),
		"RABBITMQ_NODE_IP_ADDRESS=" + ip,
		fmt.Sprint("RABBITMQ_NODE_PORT=", ports[0]),
		fmt.Sprint("RABBITMQ_DIST_PORT=", ports[2]),
		fmt.Sprint("ERL_EPMD_PORT=", ports[3]),
		"ERL_EPMD_ADDRESS=127.0.0.1",
		"RABBITMQ_CONF_ENV_FILE=" + inside + "/none",
		"RABBITMQ_CONFIG_FILE=" + inside + "/rabbitmq",
		"RABBITMQ_ENABLED_PLUGINS_FILE=" + inside + "/enabled_plugins",
		"RABBITMQ_MNESIA_BASE=" + inside + "/mnesia",
		"RABBITMQ_LOG_BASE=" + inside + "/log",
		"RABBITMQ_PID_FILE=" + inside + "/pid",
	}
	// The first process of a PID namespace takes all others with it: the broker's
	// port mapper and its helpers too. It is to die with unshare, and unshare with
	// this test; setpriv arms that anew, because a change of user disarms it.
	command := []string{"unshare", "--mount", "--pid", "--fork", "--kill-child", "--root=" + root, "--wd=/", "--mount-proc=/proc",
		"setpriv", fmt.Sprint("--reuid=", owner.Uid), fmt.Sprint("--regid=", owner.Gid), "--clear-groups", "--pdeathsig=KILL",
		"/usr/lib/rabbitmq/bin/rabbitmq-server"}
	b.said = new(bytes.Buffer)
	b.cmd = &exec.Cmd{Path: command[0], Args: command, Env: env}
	b.start(t, plugins...)
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("the broker on %s said:\n%s", ip, b.said)
		}
	})
	return b
}

// start runs the broker with these plugins, on the data that it has.
func (b *broker) start(t *testing.T, plugins ...string) {
	t.Helper()
	enabled := "[" + strings.Join(plugins, ",") + "].\n"
	if err := os.WriteFile(filepath.Join(b.dir, "enabled_plugins"), []byte(enabled), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(b.cmd.Args[0], b.cmd.Args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = b.cmd.Env, b.said, b.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b.cmd = cmd
}

// kill ends the broker as a power cut would. Its data stays.
func (b *broker) kill() {
	b.cmd.Process.Kill()
	b.cmd.Wait()
}

// ready waits for a broker that was started.
func (b *broker) ready(t *testing.T) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	c := b.client()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return c
}

func freePorts(t *testing.T, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		l, err := net.Listen("tcp", "0.0.0.0:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports[i] = l.Addr().(*net.TCPAddr).Port
	}
	return ports
}

// eventually repeats a check until it is content.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
