package postgres_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestConnectGivesUpAtTheDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := postgres.ConnectTo(ctx, "postgresql://asterisk:hunter2@127.0.0.1:1/asterisk")
	if err == nil || !strings.Contains(err.Error(), "not ready") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v, want one that says what it waited for, without the password", err)
	}
}

func TestConnect(t *testing.T) {
	dsn := server.Postgres(t, "")
	conn, err := postgres.ConnectTo(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())

	t.Run("a server that is not up yet is waited for", func(t *testing.T) {
		cfg := conn.Config()
		place, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := place.Addr().String()
		place.Close() // nobody is there

		opened := make(chan error, 1)
		go func() {
			late, err := postgres.ConnectTo(t.Context(), strings.Replace(dsn, fmt.Sprintf("127.0.0.1:%d", cfg.Port), port, 1))
			if err == nil {
				err = late.Close(t.Context())
			}
			opened <- err
		}()
		// It is asked in vain at least once: what it then meets is a socket that
		// accepts and says nothing, as of a server that just begins.
		door, err := net.Listen("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer door.Close()
		first, err := door.Accept()
		if err != nil {
			t.Fatal(err)
		}
		first.Close()
		go func() {
			for {
				client, err := door.Accept()
				if err != nil {
					return
				}
				server, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", cfg.Port))
				if err != nil {
					client.Close()
					return
				}
				go io.Copy(server, client)
				go io.Copy(client, server)
			}
		}()
		if err := <-opened; err != nil {
			t.Error(err)
		}
	})
	t.Run("a refusal is not waited for", func(t *testing.T) {
		_, err := postgres.ConnectTo(t.Context(), strings.Replace(dsn, "proformatique", "hunter2", 1))
		if err == nil || !strings.Contains(err.Error(), "28P01") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v, want the refusal, without the password", err)
		}
	})
}

func TestATableThatSomebodyElseHasLocked(t *testing.T) {
	dsn := server.Postgres(t, "CREATE TABLE infos (uuid text); INSERT INTO infos VALUES ('it')")
	open := func(t *testing.T, options string) *pgx.Conn {
		t.Helper()
		conn, err := postgres.ConnectTo(t.Context(), dsn+options)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	other, watcher := open(t, ""), open(t, "")
	lock := func(t *testing.T) (unlock func()) {
		t.Helper()
		tx, err := other.Begin(t.Context())
		if err == nil {
			_, err = tx.Exec(t.Context(), "LOCK TABLE infos IN ACCESS EXCLUSIVE MODE")
		}
		if err != nil {
			t.Fatal(err)
		}
		return func() { tx.Rollback(context.Background()) }
	}
	for _, c := range []struct {
		name string
		do   func(ctx context.Context, conn *pgx.Conn) error
	}{
		{"to read it", func(ctx context.Context, conn *pgx.Conn) error {
			found, err := postgres.Rows(ctx, conn, pgx.RowTo[string], "SELECT uuid FROM infos")
			if err == nil && len(found) != 1 {
				t.Errorf("read %q", found)
			}
			return err
		}},
		{"to write it", func(ctx context.Context, conn *pgx.Conn) error {
			return postgres.Locked(ctx, conn, "infos", func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "UPDATE infos SET uuid = 'it'")
				return err
			})
		}},
	} {
		t.Run(c.name+" goes on when it is free", func(t *testing.T) {
			unlock := lock(t)
			defer unlock()
			conn, done := open(t, ""), make(chan error, 1)
			go func() { done <- c.do(t.Context(), conn) }()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for waits := false; !waits; {
				if err := watcher.QueryRow(ctx, "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted").Scan(&waits); err != nil {
					t.Fatal(err)
				}
			}
			unlock()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		t.Run(c.name+" ends with what to do when it is not", func(t *testing.T) {
			defer lock(t)()
			conn := open(t, "?statement_timeout=100")
			if err := c.do(t.Context(), conn); err == nil || !strings.Contains(err.Error(), "another session keeps it locked") {
				t.Errorf("error %v", err)
			}
			if err := conn.Ping(t.Context()); err != nil {
				t.Errorf("the connection is of no use any more: %v", err)
			}
		})
	}
	t.Run("waits for 30 s and more, and not without end", func(t *testing.T) {
		var timeout string
		err := watcher.QueryRow(t.Context(), "SHOW statement_timeout").Scan(&timeout)
		if patience, bad := time.ParseDuration(timeout); err != nil || bad != nil || patience <= 30*time.Second || patience >= 45*time.Second {
			t.Errorf("statement_timeout is %q, %v; a step has 45 s", timeout, err)
		}
	})
}
