package directory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// record is columns and their values, to be written to a row by name. Table
// and column names are constants.
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
		return 0, fmt.Errorf("directory: add to %s: %w", table, postgres.WithoutRow(err))
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
		return fmt.Errorf("directory: correct %s, id %d: %w", table, id, postgres.WithoutRow(err))
	}
	return nil
}

// nextID returns a free id of a table that the transaction has locked. The
// sequence may lag behind rows that were inserted with an id, and databases
// that came a long way may have none.
func nextID(ctx context.Context, tx pgx.Tx, table string) (int, error) {
	var sequence *string
	var highest, id int
	err := tx.QueryRow(ctx, "SELECT pg_get_serial_sequence($1::text, 'id'), coalesce(max(id), 0)::bigint FROM "+table, table).Scan(&sequence, &highest)
	if err == nil && sequence == nil {
		return highest + 1, nil
	}
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT setval($1::text::regclass, greatest(nextval($1::text::regclass), $2::bigint))", *sequence, highest+1).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("directory: next id of %s: %w", table, err)
	}
	return id, nil
}
