package identity

import (
	"context"
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

const serviceKeyDir = "/var/lib/xivo-auth-keys"

// ServiceKeyFiles matches the files from which XiVO's services take the keys
// with which they authenticate at this server's xivo-auth.
const ServiceKeyFiles = serviceKeyDir + "/*-key.yml"

// serviceAccounts are the rows that XiVO itself made for its services: named
// as their login, after the packages. What an administrator or the mesh made
// is none of them.
const serviceAccounts = `name = login AND (name LIKE 'xivo-%' OR name LIKE 'wazo-%') AND name NOT LIKE 'xivo-mesh-%'`

// NoServiceKeys is the absence of the keys of XiVO's services, in accounts and
// files. An account without a password lets nobody in.
func NoServiceKeys(conn *pgx.Conn, p *platform.Platform) engine.Resource {
	return noServiceKeys{conn, files.Absent(p.Root, ServiceKeyFiles)}
}

type noServiceKeys struct {
	conn  *pgx.Conn
	files engine.Resource // is that there are none
}

// Diff names the accounts and files that have a key.
func (k noServiceKeys) Diff(ctx context.Context) ([]string, error) {
	logins, err := accounts(ctx, k.conn, "passwd <> ''")
	if err != nil {
		return nil, err
	}
	var diff []string
	for _, login := range logins {
		diff = append(diff, "the service account "+login+" has a key")
	}
	found, err := k.files.Diff(ctx)
	for _, f := range found {
		diff = append(diff, f+" is there")
	}
	return diff, err
}

// Apply removes them.
func (k noServiceKeys) Apply(ctx context.Context) error {
	if err := setKeys(ctx, k.conn, "passwd <> ''", func() *string { return nil }); err != nil {
		return err
	}
	return k.files.Apply(ctx)
}

// ServiceKeys are keys of this server's own for XiVO's services: every account
// without one gets a random one, and the files are made to follow. Accounts
// that have a key keep it. Up to 15.20 there are files only, each with a random
// key: those that are missing are made.
func ServiceKeys(conn *pgx.Conn, p *platform.Platform) engine.Resource { return serviceKeys{conn, p} }

type serviceKeys struct {
	conn     *pgx.Conn
	platform *platform.Platform
}

// Diff names the accounts without a key and the ones whose file is missing.
func (k serviceKeys) Diff(ctx context.Context) ([]string, error) {
	without, err := accounts(ctx, k.conn, "coalesce(passwd, '') = ''")
	if err != nil {
		return nil, err
	}
	var diff []string
	for _, login := range without {
		diff = append(diff, "the service account "+login+" has no key")
	}
	if !exists(k.platform.Path(serviceKeyDir)) {
		return diff, nil
	}
	with, err := accounts(ctx, k.conn, "passwd <> '' AND disable = 0")
	for _, login := range with {
		diff = append(diff, k.missing(login)...)
	}
	for _, service := range k.platform.Traits.KeyFiles {
		diff = append(diff, k.missing(service)...)
	}
	return diff, err
}

// missing says that the key file of a service is not there.
func (k serviceKeys) missing(service string) []string {
	file := filepath.Join(serviceKeyDir, service+"-key.yml")
	if exists(k.platform.Path(file)) {
		return nil
	}
	return []string{file + " is missing"}
}

// Apply makes the keys, then has XiVO's own tool write the files.
func (k serviceKeys) Apply(ctx context.Context) error {
	err := setKeys(ctx, k.conn, "coalesce(passwd, '') = ''", func() *string {
		key := rand.Text()
		return &key
	})
	if err != nil || !exists(k.platform.Path(serviceKeyDir)) {
		return err
	}
	if len(k.platform.Traits.KeyFiles) == 0 {
		return updateKeys(ctx)
	}
	for _, service := range k.platform.Traits.KeyFiles {
		if k.missing(service) == nil {
			continue
		}
		if err := updateKeys(ctx, service); err != nil {
			return err
		}
	}
	return nil
}

// updateKeys has XiVO's own tool write key files: those of all accounts, or up
// to 15.20 a new one for the named service.
func updateKeys(ctx context.Context, service ...string) error {
	if _, err := platform.Run(ctx, "xivo-update-keys", service...); err != nil {
		return fmt.Errorf("identity: write the services' keys to %s: %w", serviceKeyDir, err)
	}
	return nil
}

// accounts returns the logins of service accounts, of those for which the SQL
// condition holds. From late 2018 on, the table
// is gone.
func accounts(ctx context.Context, q postgres.Querier, which string) ([]string, error) {
	columns, err := postgres.Columns(ctx, q, "accesswebservice")
	if err != nil {
		return nil, fmt.Errorf("identity: service accounts: %w", err)
	}
	if columns == nil {
		return nil, nil
	}
	logins, err := postgres.Rows(ctx, q, pgx.RowTo[string], "SELECT login FROM accesswebservice WHERE "+serviceAccounts+" AND ("+which+") ORDER BY login")
	if err != nil {
		return nil, fmt.Errorf("identity: service accounts: %w", err)
	}
	return logins, nil
}

// setKeys gives each of those accounts a key, in one transaction; nil is none.
func setKeys(ctx context.Context, conn *pgx.Conn, which string, key func() *string) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		logins, err := accounts(ctx, tx, which)
		if err != nil {
			return err
		}
		for _, login := range logins {
			if err := setKey(ctx, tx, login, key()); err != nil {
				return err
			}
		}
		return nil
	})
}

// setKey changes an account's key, and with it the copy that the directory
// source of this server's own users holds in later releases.
func setKey(ctx context.Context, tx pgx.Tx, login string, key *string) error {
	const own = `UPDATE directories SET xivo_password = $2 WHERE xivo_username = $1
		AND (uri LIKE 'http://localhost%' OR uri LIKE 'https://localhost%' OR uri LIKE '%://127.0.0.1%')`
	for _, sql := range []string{"UPDATE accesswebservice SET passwd = $2 WHERE name = $1 AND login = $1", own} {
		if _, err := tx.Exec(ctx, sql, login, key); err != nil {
			// Not the driver's detail, which may carry the row.
			return fmt.Errorf("identity: key of the service account %s: %s", login, firstLine(err))
		}
	}
	return nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}
