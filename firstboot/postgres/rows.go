package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Querier is a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Rows returns what a query answers, each row made by to. A table that somebody
// else keeps locked is an error that says so.
func Rows[T any](ctx context.Context, q Querier, to pgx.RowToFunc[T], sql string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, explained(err)
	}
	found, err := pgx.CollectRows(rows, to)
	return found, explained(err)
}

// Columns returns the columns that a table has in this database; nil where there
// is no such table.
func Columns(ctx context.Context, q Querier, table string) (map[string]bool, error) {
	names, err := Rows(ctx, q, pgx.RowTo[string], `SELECT attname::text FROM pg_attribute
		WHERE attrelid = (SELECT oid FROM pg_class WHERE relname = $1::text AND pg_table_is_visible(oid)) AND attnum > 0 AND NOT attisdropped`, table)
	if err != nil {
		return nil, fmt.Errorf("postgres: columns of %s: %w", table, err)
	}
	var columns map[string]bool
	for _, name := range names {
		if columns == nil {
			columns = map[string]bool{}
		}
		columns[name] = true
	}
	return columns, nil
}

// Locked runs do in a transaction in which nobody else writes the tables, names
// separated by commas. Readers are not held up. Nothing is done where somebody
// else keeps one of them locked.
func Locked(ctx context.Context, conn *pgx.Conn, tables string, do func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE "+tables+" IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return fmt.Errorf("postgres: lock %s: %w", tables, explained(err))
		}
		return do(tx)
	})
}

// WithoutRow is an answer of the server without the parts that may quote a row,
// and with it a password.
func WithoutRow(err error) error {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) {
		return err
	}
	return fmt.Errorf("%s (SQLSTATE %s)", answer.Message, answer.Code)
}

// explained adds what to do to the answer of a server that gave up waiting.
func explained(err error) error {
	var answer *pgconn.PgError
	if errors.As(err, &answer) && answer.Code == "57014" {
		return fmt.Errorf("another session keeps it locked: see who in pg_locks, end that session or wait for it, and run again: %w", err)
	}
	return err
}
