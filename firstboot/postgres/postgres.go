// Package postgres opens XiVO's database. Everything that is run on it must
// work on PostgreSQL 9.1: no ON CONFLICT, no ADD COLUMN IF NOT EXISTS.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DSN is the database of every XiVO, with the password that every XiVO has.
// The server listens on loopback only.
const DSN = "postgresql://asterisk:proformatique@localhost/asterisk"

const statementTimeout = "statement_timeout"

// retryEvery is how often a server that is not ready is asked again.
const retryEvery = 500 * time.Millisecond

// patience is how long one statement may wait, which in practice is for a lock
// that somebody else holds: longer than a backup or an index takes on tables of
// this size, shorter than the deadline of a step.
const patience = 40 * time.Second

// Connect opens XiVO's database. It waits for a server that is not there yet or
// still starting until ctx's deadline; a refusal that waiting does not mend (a
// wrong password, no such database) is returned at once. No error carries the
// password.
func Connect(ctx context.Context) (*pgx.Conn, error) { return ConnectTo(ctx, DSN) }

// ConnectTo is Connect for a database elsewhere.
func ConnectTo(ctx context.Context, dsn string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		// pgx redacts the password in its parse errors.
		return nil, fmt.Errorf("postgres: %w", err)
	}
	// Each statement by itself: a prepared one would outlive a schema change of
	// an upgrade.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeExec
	// Of the server's timeouts the one that 9.1 has, too.
	if _, set := cfg.RuntimeParams[statementTimeout]; !set {
		cfg.RuntimeParams[statementTimeout] = fmt.Sprint(patience.Milliseconds())
	}

	began := time.Now()
	for {
		conn, err := pgx.ConnectConfig(ctx, cfg)
		if err == nil {
			return conn, nil
		}
		if refused(err) {
			return nil, fmt.Errorf("postgres: open %s on %s:%d as %s: %w", cfg.Database, cfg.Host, cfg.Port, cfg.User, err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("postgres: %s on %s:%d is not ready (waited %s): %w; is the service postgresql running?",
				cfg.Database, cfg.Host, cfg.Port, time.Since(began).Round(time.Second), err)
		case <-time.After(retryEvery):
		}
	}
}

// refused says whether the server answered, and with something else than that
// it is starting or stopping (class 57) or full for now (class 53).
func refused(err error) bool {
	var answer *pgconn.PgError
	if !errors.As(err, &answer) || len(answer.Code) < 2 {
		return false
	}
	class := answer.Code[:2]
	return class != "57" && class != "53"
}
