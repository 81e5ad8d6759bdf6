package directory

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// NoSource is the absence of everything that Source made for a peer, by the
// name that it has (see Name). A name that Name does not make is refused.
func NoSource(conn *pgx.Conn, name string) engine.Resource {
	return inTables(conn, func(t *tables) ([]change, error) {
		if !OfMesh(name) {
			return nil, fmt.Errorf("directory: the source %q was not made by us and stays", name)
		}
		return removal(t, name), nil
	})
}

// NoMeshRows is the absence of all rows that this package makes, for every peer
// and every generation of the secret.
//
// Diff counts them: their names tell who the others are, and a manifest keeps them.
func NoMeshRows(conn *pgx.Conn) engine.Resource {
	rows := comparison{conn, directoryTables + ", accesswebservice", func(ctx context.Context, q postgres.Querier) ([]change, error) {
		t, err := read(ctx, q)
		if err != nil {
			return nil, err
		}
		var changes []change
		for _, name := range t.meshNames() {
			changes = append(changes, removal(t, name)...)
		}
		accounts, err := meshAccounts(ctx, q)
		for _, a := range accounts {
			changes = append(changes, change{fmt.Sprintf("the web-service account %s is there", a.Name), deleteByID("accesswebservice", a.ID)})
		}
		return changes, err
	}}
	return engine.New(func(ctx context.Context) ([]string, error) {
		found, err := rows.Diff(ctx)
		if len(found) == 0 {
			return nil, err
		}
		return []string{fmt.Sprintf("still there: sources, definitions, context entries and accounts of a mesh (%d)", len(found))}, err
	}, rows.Apply)
}

// removal is what takes everything of a name that Name makes out of the tables.
func removal(t *tables, name string) []change {
	changes := compareContexts(t, name, nil)
	for _, d := range t.definitionsNamed(name) {
		changes = append(changes, change{fmt.Sprintf("the definition %s is there", name), deleteDefinition(d.ID)})
	}
	for _, s := range t.sourcesNamed(name) {
		changes = append(changes, change{fmt.Sprintf("the source %s is there", name), deleteByID("directories", s.ID)})
	}
	return changes
}

func deleteByID(table string, id int) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE id = $1", id); err != nil {
			return fmt.Errorf("directory: remove id %d from %s: %w", id, table, postgres.WithoutRow(err))
		}
		return nil
	}
}

// deleteDefinition removes the fields too: up to 16.12 no foreign key does.
func deleteDefinition(id int) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		if err := writeFields(ctx, tx, id, nil); err != nil {
			return err
		}
		return deleteByID("ctidirectories", id)(ctx, tx)
	}
}
