package postgres_test

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestRows(t *testing.T) {
	conn, err := postgres.ConnectTo(t.Context(), server.Postgres(t, `
		CREATE TABLE plain (id integer, "Quoted Name" text);
		CREATE TABLE upgraded (id integer, obj text);
		ALTER TABLE upgraded DROP COLUMN obj;
		ALTER TABLE upgraded ADD COLUMN acl varchar[];
		CREATE SCHEMA elsewhere;
		CREATE TABLE elsewhere.hidden (id integer);
		CREATE TABLE elsewhere.plain (other integer);
		CREATE TABLE accounts (login text, passwd text NOT NULL, CHECK (login <> 'nobody'));`))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())

	for _, c := range []struct {
		name, table string
		want        []string
	}{
		{"those of a table", "plain", []string{"Quoted Name", "id"}},
		{"what an upgrade dropped is not there, what it added is", "upgraded", []string{"acl", "id"}},
		{"no table", "nowhere", nil},
		{"a table that is not in the search path", "hidden", nil},
		{"a name that would be another statement", "plain'; DROP TABLE plain; --", nil},
	} {
		t.Run("columns: "+c.name, func(t *testing.T) {
			columns, err := postgres.Columns(t.Context(), conn, c.table)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, slices.Sorted(maps.Keys(columns))); diff != "" {
				t.Error(diff)
			}
			if c.want == nil && columns != nil {
				t.Error("there is no such table, and the answer is not nil")
			}
		})
	}
	t.Run("columns: in a transaction that cannot go on", func(t *testing.T) {
		tx, err := conn.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer tx.Rollback(t.Context())
		_, _ = tx.Exec(t.Context(), "SELECT * FROM nowhere")
		if columns, err := postgres.Columns(t.Context(), tx, "plain"); err == nil || !strings.Contains(err.Error(), "columns of plain") {
			t.Errorf("%v, %v; want an error that names the table", columns, err)
		}
	})
	t.Run("what a refusal quotes of a row is not told", func(t *testing.T) {
		_, err := conn.Exec(t.Context(), "INSERT INTO accounts VALUES ('nobody', 'hunter2')")
		if err == nil {
			t.Fatal("it was not refused")
		}
		if err := postgres.WithoutRow(err); !strings.Contains(err.Error(), "violates check constraint") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v", err)
		}
		var answer *pgconn.PgError
		if !errors.As(err, &answer) || !strings.Contains(answer.Detail, "hunter2") {
			t.Fatalf("the server quoted no row: %v", err)
		}
		if errors.As(postgres.WithoutRow(err), &answer) {
			t.Error("it carries the server's answer")
		}
		if got := postgres.WithoutRow(pgx.ErrNoRows); got != pgx.ErrNoRows {
			t.Errorf("what the server did not say became %v", got)
		}
	})
}
