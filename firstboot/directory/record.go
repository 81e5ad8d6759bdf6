package directory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// record is columns and their values, to be written to a row by name. Table
// and column names are our own constants.
type record map[string]any

// insert adds a row with a free id and returns it. The table is locked by the
// transaction.
func (r record) insert(ctx context.Context, tx pgx.Tx, table string) (id int, err error) {
	if id, err = nextID(ctx, tx, table); err != nil {
		return 0, err
	}
	r = maps.Clone(r)
	r["id"] = id
	columns := slices.Sorted(maps.Keys(r))
	var places []string
	var values []any
	for i, c := range columns {
		places = append(places, fmt.Sprintf("$%d", i+1))
		values = append(values, r[c])
	}
	sql := fmt.Sprintf("INSERT INTO %s (%s) VALUES (%s)", table, strings.Join(columns, ", "), strings.Join(places, ", "))
	if _, err := tx.Exec(ctx, sql, values...); err != nil {
		return 0, fmt.Errorf("directory: add to %s: %w", table, discreet(err))
	}
	return id, nil
}

// update corrects the row with the id, and only the columns named.
func (r record) update(ctx context.Context, tx pgx.Tx, table string, id int) error {
	var sets []string
	values := []any{id}
	for _, c := range slices.Sorted(maps.Keys(r)) {
		values = append(values, r[c])
		sets = append(sets, fmt.Sprintf("%s = $%d", c, len(values)))
	}
	sql := fmt.Sprintf("UPDATE %s SET %s WHERE id = $1", table, strings.Join(sets, ", "))
	if _, err := tx.Exec(ctx, sql, values...); err != nil {
		return fmt.Errorf("directory: correct %s, id %d: %w", table, id, discreet(err))
	}
	return nil
}

// discreet takes the parts out of the server's answer that may quote a row,
// and with it a password.
func discreet(err error) error {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return err
	}
	return fmt.Errorf("%s (SQLSTATE %s)", answer.Message, answer.Code)
}
