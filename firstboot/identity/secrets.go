package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// The files that hold one value of this machine each.
var valueFiles = []struct{ pattern, name string }{
	{"/etc/machine-id", "the machine id"},
	{"/var/lib/dbus/machine-id", "D-Bus's machine id"},
	{platform.RabbitDataDir + "/.erlang.cookie", "the Erlang cookie"},
	{platform.CertificateKey, "the TLS key"},
	{"/etc/ssh/ssh_host_*_key", "an SSH host key"},
}

// serviceKey is the line of a service's key file, and of XiVO's auth_keys.
var serviceKey = regexp.MustCompile(`(?m)^\s*service_key:\s*['"]?([^\s'"]+)`)

// inUUIDFile finds the UUID in the files that hand it out.
var inUUIDFile = regexp.MustCompile(Variable + `=["']?([0-9a-fA-F-]{36})`)

// Secrets calls add with what is this server's own, and what it is called: its
// UUIDs, the keys of XiVO's service accounts, the machine id, and keys of files. A
// file that is missing has none.
func Secrets(ctx context.Context, conn *pgx.Conn, p *platform.Platform, add func(name, text string)) error {
	uuids, err := postgres.Rows(ctx, conn, pgx.RowTo[string], "SELECT uuid FROM infos")
	if err != nil {
		return fmt.Errorf("identity: read infos: %w", err)
	}
	for _, id := range uuids {
		add("the XiVO UUID", id)
	}
	if running, err := p.Init.Environment(ctx, Variable); err != nil {
		return fmt.Errorf("identity: %s of the service manager: %w", Variable, err)
	} else {
		add("the XiVO UUID of the service manager", running)
	}
	var errs []error
	for _, name := range []string{profileFile, systemdFile, defaultFile} {
		errs = append(errs, eachFile(p, name, func(content []byte) {
			for _, found := range inUUIDFile.FindAllSubmatch(content, -1) {
				add("the XiVO UUID of "+name, string(found[1]))
			}
		}))
	}
	errs = append(errs, eachServiceKey(ctx, conn, add))
	errs = append(errs, eachFile(p, ServiceKeyFiles, func(content []byte) {
		for _, found := range serviceKey.FindAllSubmatch(content, -1) {
			add("the key of a service of XiVO's", string(found[1]))
		}
	}))
	for _, f := range valueFiles {
		errs = append(errs, eachFile(p, f.pattern, func(content []byte) { add(f.name, string(content)) }))
	}
	return errors.Join(errs...)
}

// eachServiceKey is of the accounts that XiVO made.
func eachServiceKey(ctx context.Context, conn *pgx.Conn, add func(name, text string)) error {
	columns, err := postgres.Columns(ctx, conn, "accesswebservice")
	if err != nil || columns == nil {
		return err
	}
	keys, err := postgres.Rows(ctx, conn, pgx.RowTo[string], "SELECT passwd FROM accesswebservice WHERE passwd <> '' AND "+serviceAccounts)
	if err != nil {
		return fmt.Errorf("identity: keys of service accounts: %w", err)
	}
	for _, key := range keys {
		add("the key of a service of XiVO's", key)
	}
	return nil
}

// eachFile reads the files that match. What a link leads to is another file's.
func eachFile(p *platform.Platform, pattern string, do func(content []byte)) error {
	names, err := filepath.Glob(p.Path(pattern))
	for _, name := range names {
		if st, statErr := os.Lstat(name); statErr == nil && st.Mode()&fs.ModeSymlink != 0 {
			continue
		}
		content, readErr := files.ReadFile(name)
		if errors.Is(readErr, fs.ErrNotExist) {
			continue
		}
		err = errors.Join(err, readErr)
		do(content)
	}
	return err
}
