// Package server runs the real servers that package tests talk to, out of a
// Debian root, each in a folder and in namespaces of its own that die with the
// test.
package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// RootVariable names the environment variable with the path of the unpacked
// Debian root. Without it tests that need a server are skipped.
const RootVariable = "XIVO_SERVER_ROOT"

// startDeadline is generous: two cores may be shared by many tests.
const startDeadline = 5 * time.Minute

// Postgres runs a PostgreSQL with XiVO's role and database for the length of
// the test, applies the schema to it, and returns the DSN of that database.
// It needs root, and skips the test when there is no Debian root to run from.
func Postgres(t testing.TB, schemaSQL string) (dsn string) {
	t.Helper()
	root := debianRoot(t)
	bin := strings.TrimPrefix(newest(t, filepath.Join(root, "usr/lib/postgresql/*/bin")), root)
	port := FreePort(t)
	data := t.TempDir()

	// The root is shared by all tests and stays as it is: only the mounts of a
	// private namespace are put over it. PID 1 of the pid namespace is the
	// shell; when it is killed the kernel ends everything below it. It must
	// stay (no exec): a change of user clears the signal that --kill-child set.
	// Every server process holds our output pipe as fd 3, so that waiting for
	// its end is waiting for all of them.
	const script = `set -e
root=$1 data=$2 bin=$3 port=$4
mount -t tmpfs tmpfs "$root/tmp"
mkdir -m 755 "$root/tmp/pg"
mount --bind "$data" "$root/tmp/pg"
mount -t tmpfs tmpfs "$root/run"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for d in null zero random urandom; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
mkdir "$data/db"
chroot "$root" chown postgres /tmp/pg /tmp/pg/db
printf proformatique >"$data/pw"
chroot --userspec=postgres:postgres "$root" "$bin/initdb" -D /tmp/pg/db -U asterisk --pwfile=/tmp/pg/pw -A md5 -E UTF8 --locale=C.UTF-8 --no-sync >"$data/log" 2>&1
chroot --userspec=postgres:postgres "$root" "$bin/postgres" -D /tmp/pg/db -p "$port" \
  -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB 3>&1 >>"$data/log" 2>&1 ||
  exit $?
`
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private",
		"sh", "-c", script, "sh", root, data, bin, fmt.Sprint(port))
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := start(t, cmd)

	dsn = fmt.Sprintf("postgresql://asterisk:proformatique@127.0.0.1:%d/asterisk", port)
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	admin := connect(ctx, t, strings.TrimSuffix(dsn, "asterisk")+"postgres", done, func() string {
		log, _ := os.ReadFile(filepath.Join(data, "log"))
		return said.String() + string(log)
	})
	defer admin.Close(ctx)
	if _, err := admin.Exec(ctx, "CREATE DATABASE asterisk OWNER asterisk ENCODING 'UTF8'"); err != nil {
		t.Fatalf("postgres: create the database: %v", err)
	}

	fill(ctx, t, dsn, schemaSQL)
	return dsn
}

// Database makes one more database in the server of a DSN that Postgres
// returned, applies a schema to it, and returns the DSN of the new one.
func Database(t testing.TB, dsn, schemaSQL string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startDeadline)
	defer cancel()
	admin, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatalf("postgres: %v", err)
	}
	defer admin.Close(ctx)
	name := "d" + strings.ToLower(rand.Text())
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+name+" TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		t.Fatalf("postgres: create a database: %v", err)
	}
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	fill(ctx, t, u.String(), schemaSQL)
	return u.String()
}

func fill(ctx context.Context, t testing.TB, dsn, schemaSQL string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatalf("postgres: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.PgConn().Exec(ctx, schemaSQL).ReadAll(); err != nil {
		t.Fatalf("postgres: apply the schema: %v", err)
	}
}

// start runs the command and kills it when the test ends. The channel closes
// when the process is gone.
func start(t testing.TB, cmd *exec.Cmd) (done chan struct{}) {
	t.Helper()
	done = make(chan struct{})
	started := make(chan error)
	// Pdeathsig follows the thread that forked, so this goroutine keeps it.
	go func() {
		defer close(done)
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatalf("start %s: %v", cmd.Path, err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
	})
	return done
}

func connect(ctx context.Context, t testing.TB, dsn string, gone <-chan struct{}, log func() string) *pgx.Conn {
	t.Helper()
	for {
		conn, err := pgx.Connect(ctx, dsn)
		if err == nil {
			return conn
		}
		select {
		case <-gone:
			t.Fatalf("postgres ended before it answered:\n%s", log())
		case <-ctx.Done():
			t.Fatalf("postgres did not answer within %s: %v\n%s", startDeadline, err, log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func debianRoot(t testing.TB) string {
	t.Helper()
	root := os.Getenv(RootVariable)
	if root == "" {
		t.Skipf("needs a Debian root with the servers: set %s", RootVariable)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to chroot")
	}
	return filepath.Clean(root)
}

func newest(t testing.TB, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("nothing matches %s (%v)", pattern, err)
	}
	return found[len(found)-1]
}
