package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Superuser runs one statement in a database as who may do everything on the server,
// and returns the rows, one a line. XiVO's own role owns its database and no more.
type Superuser func(ctx context.Context, database, sql string) (string, error)

// LocalSuperuser is the system's user postgres, whom Debian's server knows by its
// socket.
func LocalSuperuser(ctx context.Context, database, sql string) (string, error) {
	who, err := user.Lookup("postgres")
	if err != nil {
		return "", fmt.Errorf("postgres: become its superuser: %w", err)
	}
	uid, uidErr := strconv.ParseUint(who.Uid, 10, 32)
	gid, gidErr := strconv.ParseUint(who.Gid, 10, 32)
	if uidErr != nil || gidErr != nil {
		return "", fmt.Errorf("postgres: become its superuser: the ids of %s are %q and %q", who.Username, who.Uid, who.Gid)
	}
	cmd := exec.CommandContext(ctx, "psql", "--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--no-password",
		"--set=ON_ERROR_STOP=1", "--port=5432", "--dbname="+database, "--command="+sql)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.WaitDelay = 5 * time.Second
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("postgres: %s in %s, as %s: %w: %s", sql, database, who.Username, err, bytes.TrimSpace(said.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Cluster is one server with its files.
type Cluster struct {
	// Data is the folder of its data.
	Data string
	// Super asks it while it runs; Stop ends it in good order, and returns when it
	// has ended; Start begins it again, and returns when it can be asked.
	Super Superuser
	Stop  func(ctx context.Context) error
	Start func(ctx context.Context) error
	// Control is what pg_controldata says, in English.
	Control func(ctx context.Context) (string, error)
}

// LocalCluster is Debian's cluster that runs on XiVO's port.
func LocalCluster(ctx context.Context, stop, start func(ctx context.Context) error) (Cluster, error) {
	data, err := LocalSuperuser(ctx, "postgres", "SHOW data_directory")
	if err != nil {
		return Cluster{}, err
	}
	version, err := limit.ReadFile(filepath.Join(data, "PG_VERSION"), limit.Refusal)
	if err != nil {
		return Cluster{}, fmt.Errorf("postgres: which version %s is of: %w", data, err)
	}
	program := filepath.Join("/usr/lib/postgresql", strings.TrimSpace(string(version)), "bin/pg_controldata")
	return Cluster{Data: data, Super: LocalSuperuser, Stop: stop, Start: start, Control: func(ctx context.Context) (string, error) {
		cmd := exec.CommandContext(ctx, program, data)
		cmd.Env = []string{"LC_ALL=C"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("postgres: %s: %w: %s", program, err, bytes.TrimSpace(out))
		}
		return string(out), nil
	}}, nil
}
