package directory

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// change is a difference between the tables and what they should be.
type change struct {
	// says tells it to a person, without passwords.
	says string
	// do removes it.
	do func(ctx context.Context, tx pgx.Tx) error
}

// comparison is the resource of a function that reads tables and says in what
// they differ from what should be.
type comparison struct {
	conn    *pgx.Conn
	tables  string // names, separated by commas
	compare func(ctx context.Context, q postgres.Querier) ([]change, error)
}

// Diff says what differs.
func (c comparison) Diff(ctx context.Context) ([]string, error) {
	changes, err := c.compare(ctx, c.conn)
	var says []string
	for _, ch := range changes {
		says = append(says, ch.says)
	}
	return says, err
}

// Apply reads the tables again while nobody else writes to them, and removes all
// differences, in one transaction.
func (c comparison) Apply(ctx context.Context) error {
	return postgres.Locked(ctx, c.conn, c.tables, func(tx pgx.Tx) error {
		changes, err := c.compare(ctx, tx)
		if err != nil {
			return err
		}
		for _, ch := range changes {
			if err := ch.do(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// directoryTables are those in which a source and all that makes it searchable
// stand.
const directoryTables = "directories, ctidirectories, ctidirectoryfields, cticontexts"

// inTables is the comparison of the directory tables.
func inTables(conn *pgx.Conn, compare func(*tables) ([]change, error)) engine.Resource {
	return comparison{conn, directoryTables, func(ctx context.Context, q postgres.Querier) ([]change, error) {
		t, err := read(ctx, q)
		if err != nil {
			return nil, err
		}
		return compare(t)
	}}
}
