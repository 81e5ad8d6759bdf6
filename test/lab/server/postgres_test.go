package server_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/schema"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/server"
)

func TestEveryEraHasItsTables(t *testing.T) {
	for _, era := range schema.Eras {
		t.Run(era, func(t *testing.T) {
			conn, err := pgx.Connect(t.Context(), server.Postgres(t, schema.SQL(era)))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(t.Context())

			var nodes int
			if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM infos").Scan(&nodes); err != nil || nodes != 1 {
				t.Errorf("infos has %d rows (%v), want 1", nodes, err)
			}
		})
	}
}
