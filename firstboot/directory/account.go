package directory

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
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

// Account is the web-service account with which the other nodes read this
// node's users: enabled, with password and no host, and with the least rights.
// The password is stored in clear, as digest authentication needs it.
//
// An account of somebody's own is an error, as what to do with it is for a person
// to say: a row of our name with another login, for the name is unique, and an
// enabled row with our login, for xivo-auth fails on two.
func Account(conn *pgx.Conn, p *platform.Platform, login string, password secret.Secret) engine.Resource {
	return comparison{conn, "accesswebservice", webServiceAccount{accountRights(p.Traits), login, password}.compare}
}

// webServiceAccount is the account as it should be.
type webServiceAccount struct {
	rights   []string
	login    string
	password secret.Secret
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

func (a webServiceAccount) compare(ctx context.Context, q postgres.Querier) ([]change, error) {
	columns, err := postgres.Columns(ctx, q, "accesswebservice")
	if err != nil {
		return nil, err
	}
	have, err := a.read(ctx, q, columns)
	if err != nil {
		return nil, err
	}
	if have == nil {
		return []change{{fmt.Sprintf("the web-service account %s is missing", a.login), func(ctx context.Context, tx pgx.Tx) error {
			return a.add(ctx, tx, columns)
		}}}, nil
	}
	return a.differences(have), nil
}

// differences of the row from the account, each with the column that it is in.
func (a webServiceAccount) differences(have *account) []change {
	var changes []change
	differs := func(what string, is bool, column string, wanted any) {
		if !is {
			return
		}
		says := fmt.Sprintf("the web-service account %s has another %s", a.login, what)
		changes = append(changes, change{says, func(ctx context.Context, tx pgx.Tx) error {
			return record{column: wanted}.update(ctx, tx, "accesswebservice", have.ID)
		}})
	}
	differs("password", have.Password != a.password.Reveal(), "passwd", a.password.Reveal())
	differs("host", have.Host != "", "host", nil)
	differs("state: it is disabled", have.Disabled != 0, "disable", 0)
	differs("list of rights", have.Rights != nil && !slices.Equal(have.Rights, a.rights), "acl", a.rights)
	return changes
}

// add adds the row to a table with these columns: obj until 15.20, acl after, uuid
// from 17.x on.
func (a webServiceAccount) add(ctx context.Context, tx pgx.Tx, columns map[string]bool) error {
	r := record{
		"name":        a.login,
		"login":       a.login,
		"passwd":      a.password.Reveal(),
		"host":        nil,
		"disable":     0,
		"description": accountText,
	}
	if columns["acl"] {
		r["acl"] = a.rights
	}
	if columns["obj"] {
		r["obj"] = ""
	}
	if columns["uuid"] {
		r["uuid"] = uuid.NewString()
	}
	_, err := r.insert(ctx, tx, "accesswebservice")
	return err
}

// read returns the row, nil where there is none. Rights is nil in schemas
// without them.
func (a webServiceAccount) read(ctx context.Context, q postgres.Querier, columns map[string]bool) (*account, error) {
	rights := "NULL::varchar[]"
	if columns["acl"] {
		rights = "acl"
	}
	found, err := postgres.Rows(ctx, q, pgx.RowToStructByPos[account], `SELECT id, name, coalesce(login, ''), coalesce(passwd, ''), coalesce(host, ''), disable, `+rights+`
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

type named struct {
	ID   int
	Name string
}

func meshAccounts(ctx context.Context, q postgres.Querier) ([]named, error) {
	found, err := postgres.Rows(ctx, q, pgx.RowToStructByPos[named], "SELECT id, name FROM accesswebservice ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("directory: read accesswebservice: %w", err)
	}
	return slices.DeleteFunc(found, func(a named) bool { return !meshAccount.MatchString(a.Name) }), nil
}
