package directory

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// accountRights is all that reading contacts takes, and where a peer's
// xivo-ctid-ng asks with a token of this account, the statuses. xivo-confd does
// not look at them for digest authentication.
func accountRights(t platform.Traits) []string {
	rights := []string{"confd.infos.read", "confd.users.read"}
	if t.PresenceCredentials {
		rights = append(rights, "ctid-ng.users.*.presences.read", "ctid-ng.lines.*.presences.read")
	}
	return rights
}

// accountText describes the account in XiVO's web interface.
const accountText = "read by the other nodes of the mesh (xivo-firstboot)"

// WebServiceAccount is what Account returns.
type WebServiceAccount struct {
	conn     *pgx.Conn
	rights   []string
	login    string
	password secret.Secret
}

// Account is the web-service account with which the other nodes read this
// node's users: enabled, with password and no host, and with the least rights.
// The password is stored in clear, as digest authentication needs it.
func Account(conn *pgx.Conn, p *platform.Platform, login string, password secret.Secret) *WebServiceAccount {
	return &WebServiceAccount{conn, accountRights(p.Traits), login, password}
}

type account struct {
	ID       int
	Name     string
	Login    string
	Password string
	Host     string
	Disabled int
	Rights   []string
}

// Diff compares the row. An account of somebody's own is an error, as what to do
// with it is for a person to say: a row of our name with another login, for the
// name is unique, and an enabled row with our login, for xivo-auth fails on two.
func (a *WebServiceAccount) Diff(ctx context.Context) ([]string, error) {
	have, err := a.read(ctx, a.conn)
	if err != nil {
		return nil, err
	}
	if have == nil {
		return []string{fmt.Sprintf("the web-service account %s is missing", a.login)}, nil
	}
	var diff []string
	differs := func(what string, is bool) {
		if is {
			diff = append(diff, fmt.Sprintf("the web-service account %s has another %s", a.login, what))
		}
	}
	differs("password", have.Password != a.password.Reveal())
	differs("host", have.Host != "")
	differs("state: it is disabled", have.Disabled != 0)
	differs("list of rights", have.Rights != nil && !slices.Equal(have.Rights, a.rights))
	return diff, nil
}

// Apply adds the row or corrects it, in one transaction.
func (a *WebServiceAccount) Apply(ctx context.Context) error {
	return postgres.Locked(ctx, a.conn, "accesswebservice", func(tx pgx.Tx) error {
		have, err := a.read(ctx, tx)
		if err != nil {
			return err
		}
		columns, err := columnsOf(ctx, tx, "accesswebservice")
		if err != nil {
			return err
		}
		r := record{
			"name":    a.login,
			"login":   a.login,
			"passwd":  a.password.Reveal(),
			"host":    nil,
			"disable": 0,
		}
		// obj until 15.20, acl after.
		if columns["acl"] {
			r["acl"] = a.rights
		}
		if have != nil {
			return r.update(ctx, tx, "accesswebservice", have.ID)
		}
		r["description"] = accountText
		if columns["obj"] {
			r["obj"] = ""
		}
		if columns["uuid"] {
			r["uuid"] = uuid.NewString()
		}
		_, err = r.insert(ctx, tx, "accesswebservice")
		return err
	})
}

// read returns the row, nil where there is none. Rights is nil in schemas
// without them.
func (a *WebServiceAccount) read(ctx context.Context, q postgres.Querier) (*account, error) {
	columns, err := columnsOf(ctx, q, "accesswebservice")
	if err != nil {
		return nil, err
	}
	rights := "NULL::varchar[]"
	if columns["acl"] {
		rights = "acl"
	}
	found, err := rowsOf[account](ctx, q, `SELECT id, name, coalesce(login, ''), coalesce(passwd, ''), coalesce(host, ''), disable, `+rights+`
		FROM accesswebservice WHERE name = $1 OR login = $1 ORDER BY id`, a.login)
	if err != nil {
		return nil, fmt.Errorf("directory: read accesswebservice: %w", err)
	}
	var own *account
	for i, f := range found {
		switch {
		case f.Name == a.login && f.Login != a.login:
			return nil, fmt.Errorf("directory: the web-service account %q (id %d) has the name of the mesh's, but it is not: its login is %q; rename it in XiVO's web interface, then run again", f.Name, f.ID, f.Login)
		case f.Name == a.login:
			own = &found[i]
		case f.Disabled == 0:
			return nil, fmt.Errorf("directory: the web-service account %q (id %d) has the mesh's login %s: delete it in XiVO's web interface, two with one login break xivo-auth", f.Name, f.ID, a.login)
		}
	}
	return own, nil
}
