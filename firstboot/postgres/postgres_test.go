package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

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

	t.Run("a refusal is not waited for", func(t *testing.T) {
		_, err := postgres.ConnectTo(t.Context(), strings.Replace(dsn, "proformatique", "hunter2", 1))
		if err == nil || !strings.Contains(err.Error(), "28P01") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error %v, want the refusal, without the password", err)
		}
	})
}
