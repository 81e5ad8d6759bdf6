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

// explained adds what to do to the answer of a server that gave up waiting.
func explained(err error) error {
	var answer *pgconn.PgError
	if errors.As(err, &answer) && answer.Code == "57014" {
		return fmt.Errorf("another session keeps it locked: see who in pg_locks, end that session or wait for it, and run again: %w", err)
	}
	return err
}
