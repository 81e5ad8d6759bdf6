package postgres_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

// debian is a PostgreSQL that is started and stopped, with its files.
type debian struct {
	postgres.Cluster
	dsn    string
	orders io.Writer
	done   *bufio.Reader
}

// order has the server's shell do something, and returns when it is done.
func (d *debian) order(t *testing.T, what string) {
	t.Helper()
	fmt.Fprintln(d.orders, what)
	if said, err := d.done.ReadString('\n'); err != nil || said != "done\n" {
		t.Fatalf("%s: %q, %v", what, said, err)
	}
}

func aCluster(t *testing.T) *debian {
	t.Helper()
	root := os.Getenv(server.RootVariable)
	if root == "" || os.Geteuid() != 0 {
		t.Skip("needs root, and a Debian root with the servers: set " + server.RootVariable)
	}
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/postgresql/*/bin"))
	if err != nil || len(found) == 0 {
		t.Fatalf("no PostgreSQL in %s: %v", root, err)
	}
	bin := strings.TrimPrefix(found[len(found)-1], root)
	data, port := t.TempDir(), server.FreePort(t)
	const script = `set -e
root=$1 data=$2 bin=$3 port=$4
mount -t tmpfs tmpfs "$root/tmp"
mkdir -m 755 "$root/tmp/pg"
mount --bind "$data" "$root/tmp/pg"
mount -t tmpfs tmpfs "$root/dev"
mkdir -m 1777 "$root/dev/shm"
for d in null zero random urandom; do touch "$root/dev/$d"; mount --bind "/dev/$d" "$root/dev/$d"; done
mkdir "$data/db"
chroot "$root" chown postgres /tmp/pg /tmp/pg/db
as() { chroot --userspec=postgres:postgres "$root" "$@" >>"$data/log" 2>&1; }
printf proformatique >"$data/pw"
as "$bin/initdb" -D /tmp/pg/db -U asterisk --pwfile=/tmp/pg/pw -A md5 -E UTF8 --locale=C.UTF-8 --no-sync
while read order; do
	case $order in
	start) as "$bin/pg_ctl" -w -D /tmp/pg/db -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB -c min_wal_size=64MB" start ;;
	stop) as "$bin/pg_ctl" -w -D /tmp/pg/db -m fast stop ;;
	crash) as "$bin/pg_ctl" -w -D /tmp/pg/db -m immediate stop ;;
	control) LC_ALL=C chroot "$root" "$bin/pg_controldata" /tmp/pg/db >"$data/control" ;;
	esac
	echo done
done
`
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"sh", "-c", script, "sh", root, data, bin, fmt.Sprint(port))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said bytes.Buffer
	cmd.Stderr = &said
	orders, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(data, "log"))
			t.Logf("the server said: %s%s", &said, log)
		}
	})
	d := &debian{
		dsn:    fmt.Sprintf("postgresql://asterisk:proformatique@127.0.0.1:%d/", port),
		orders: orders, done: bufio.NewReader(out),
	}
	d.Cluster = postgres.Cluster{
		Data: filepath.Join(data, "db"),
		Super: func(ctx context.Context, database, sql string) (string, error) {
			conn, err := pgx.Connect(ctx, d.dsn+database)
			if err != nil {
				return "", err
			}
			defer conn.Close(ctx)
			results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
			var lines []string
			for _, result := range results {
				for _, row := range result.Rows {
					lines = append(lines, string(bytes.Join(row, []byte("|"))))
				}
			}
			return strings.Join(lines, "\n"), err
		},
		Stop:  func(context.Context) error { d.order(t, "stop"); return nil },
		Start: func(context.Context) error { d.order(t, "start"); return nil },
		Control: func(context.Context) (string, error) {
			d.order(t, "control")
			said, err := os.ReadFile(filepath.Join(data, "control"))
			return string(said), err
		},
	}
	d.order(t, "start")
	return d
}

func (d *debian) sql(t *testing.T, database, sql string) string {
	t.Helper()
	out, err := d.Super(t.Context(), database, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

// holding are the files of the cluster, without its folder, that hold a text.
func (d *debian) holding(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(d.Data, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(name)
		if bytes.Contains(raw, []byte(text)) {
			found = append(found, strings.TrimPrefix(name, d.Data+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestNothingOfAnOldRowStaysInTheFiles(t *testing.T) {
	const old, kept = "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6e", "a number that people call"
	d := aCluster(t)
	d.sql(t, "postgres", "CREATE DATABASE asterisk")
	for _, sql := range []string{
		"CREATE TABLE infos (uuid varchar(38) PRIMARY KEY)",
		"INSERT INTO infos VALUES ('" + old + "')",
		"CREATE TABLE lines (uuid text, number text)",
		"INSERT INTO lines SELECT '" + old + "', '" + kept + "' FROM generate_series(1, 5000)",
		"CREATE INDEX lines_uuid ON lines (uuid)",
		"CREATE TABLE session (token text)",
		"INSERT INTO session SELECT '" + old + "' FROM generate_series(1, 100)",
		"ANALYZE", // and the statistics hold it
		"DELETE FROM session",
	} {
		d.sql(t, "asterisk", sql)
	}
	// Segments that were used, and are kept to be written over.
	for range 6 {
		d.sql(t, "asterisk", "UPDATE lines SET number = number")
		d.sql(t, "postgres", "SELECT pg_switch_wal()")
		d.sql(t, "postgres", "CHECKPOINT")
	}
	d.sql(t, "asterisk", "DELETE FROM lines WHERE ctid = (SELECT min(ctid) FROM lines)")
	d.sql(t, "asterisk", "UPDATE lines SET uuid = ''")
	d.sql(t, "asterisk", "UPDATE infos SET uuid = '00000000-0000-0000-0000-000000000000'")
	before := strings.Join(d.holding(t, old), "\n")
	for _, place := range []string{"base/", "pg_wal/"} {
		if !strings.Contains(before, place) {
			t.Errorf("before, no file below %s holds it, so this proves nothing:\n%s", place, before)
		}
	}

	rewritten := d.Rewritten()
	if diff, err := rewritten.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("%q, %v", diff, err)
	}
	if err := rewritten.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := rewritten.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %q, %v", diff, err)
	}

	wal := d.NoOldWAL()
	if diff, err := wal.Diff(t.Context()); err != nil || len(diff) != 1 || !strings.Contains(diff[0], "runs") {
		t.Fatalf("%q, %v", diff, err)
	}
	if err := wal.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := wal.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %q, %v", diff, err)
	}
	if left := d.holding(t, old); left != nil {
		t.Errorf("an old row is in %q", left)
	}

	// The server starts on what is left, with all that it had, and goes on.
	d.order(t, "start")
	if n := d.sql(t, "asterisk", "SELECT count(*) FROM lines WHERE number = '"+kept+"'"); n != "4999" {
		t.Errorf("%s rows are left of 4999", n)
	}
	for range 3 {
		d.sql(t, "asterisk", "INSERT INTO lines SELECT 'new', 'new' FROM generate_series(1, 1000)")
		d.sql(t, "postgres", "SELECT pg_switch_wal()")
		d.sql(t, "postgres", "CHECKPOINT")
	}
	d.order(t, "crash")
	d.order(t, "start")
	if n := d.sql(t, "asterisk", "SELECT count(*) FROM lines"); n != "7999" {
		t.Errorf("after a crash, %s rows are left of 7999", n)
	}
}

func TestWhatIsLeftOfTheLogOfAStoppedServerIsFound(t *testing.T) {
	d := aCluster(t)
	wal := d.NoOldWAL()
	if err := wal.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(d.Data, "pg_wal/0*"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("segments: %q, %v", segments, err)
	}
	change := func(name string, at int64, text string) {
		t.Helper()
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, file, says string
		at               int64
	}{
		{"a segment that is kept to be written over", "pg_wal/0000000100000000000000AA", "segments of the log", 0},
		{"one in the making", "pg_wal/xlogtemp.77", "segments of the log", 0},
		{"what the archiver was told", "pg_wal/archive_status/0000000100000000000000AA.ready", "segments of the log", 0},
		{"a byte at the end", "pg_wal/" + filepath.Base(segments[0]), "after the end", 16<<20 - 1},
		{"a byte after the checkpoint's page", "pg_wal/" + filepath.Base(segments[0]), "after the end", 8192},
	} {
		t.Run(c.name, func(t *testing.T) {
			change(filepath.Join(d.Data, c.file), c.at, "x")
			if diff, err := wal.Diff(t.Context()); err != nil || len(diff) != 1 || !strings.Contains(diff[0], c.says) {
				t.Errorf("%q, %v", diff, err)
			}
			if err := wal.Apply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if diff, err := wal.Diff(t.Context()); err != nil || diff != nil {
				t.Errorf("after: %q, %v", diff, err)
			}
		})
	}
	d.order(t, "start")

	t.Run("a server that crashed is left as it is", func(t *testing.T) {
		d.order(t, "crash")
		os.Remove(filepath.Join(d.Data, "postmaster.pid"))
		if _, err := wal.Diff(t.Context()); err == nil || !strings.Contains(err.Error(), "in production") {
			t.Errorf("%v", err)
		}
		if err := wal.Apply(t.Context()); err == nil {
			t.Error("its log was emptied")
		}
		d.order(t, "start")
	})
	t.Run("a server that does not end is waited for no longer than there is time", func(t *testing.T) {
		deaf := d.Cluster
		deaf.Stop = func(context.Context) error { return nil }
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		if err := deaf.NoOldWAL().Apply(ctx); err == nil || !strings.Contains(err.Error(), "still runs") {
			t.Errorf("%v", err)
		}
	})
}

// Whoever still writes while the server is stopped leaves it after the checkpoint: it is
// stopped anew, until next to nothing is left.
func TestAServerThatSomebodyStillWritesToIsStoppedAgain(t *testing.T) {
	const old = "5d2e7a14-43f0-4d7e-9c57-1f2a3b4c5d6e"
	d := aCluster(t)
	d.sql(t, "postgres", "CREATE DATABASE asterisk")
	d.sql(t, "asterisk", "CREATE TABLE lines (uuid text)")
	stop, stopped, writes := d.Stop, 0, 2
	d.Stop = func(ctx context.Context) error {
		if stopped++; stopped <= writes {
			d.sql(t, "asterisk", "INSERT INTO lines SELECT '"+old+"' FROM generate_series(1, 5000)")
		}
		return stop(ctx)
	}
	wal := d.NoOldWAL()
	if err := wal.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	if diff, err := wal.Diff(t.Context()); err != nil || diff != nil || stopped <= writes {
		t.Errorf("after it was stopped %d times: %q, %v", stopped, diff, err)
	}
	for _, name := range d.holding(t, old) {
		if strings.HasPrefix(name, "pg_wal/") {
			t.Errorf("what was written while it was stopped is in %s", name)
		}
	}

	d.order(t, "start")
	stopped, writes = 0, 100
	if err := wal.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "was still writing each time") {
		t.Errorf("of one that never ends to write: %v", err)
	}
}
