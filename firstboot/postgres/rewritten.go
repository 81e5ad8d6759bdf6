package postgres

import (
	"context"
	"fmt"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// Rewritten is every table of every database being written anew since the resource
// was made, with its indexes and what the planner knows of it: a row that was changed
// or deleted stays in the old file, and values of it among the statistics. Only
// VACUUM FULL writes a table to another file. Nobody else can use it meanwhile, and
// the largest one needs as much free space as it has.
func (c Cluster) Rewritten() engine.Resource {
	return engine.Replaced(c.tableFiles, func(same int) string {
		return fmt.Sprintf("tables in files that may hold rows of before (%d)", same)
	}, c.rewrite)
}

func (c Cluster) rewrite(ctx context.Context) error {
	databases, err := c.databases(ctx)
	if err != nil {
		return err
	}
	for _, database := range databases {
		for _, sql := range []string{
			// ANALYZE keeps what is known of a table that has no rows any more.
			"DELETE FROM pg_catalog.pg_statistic",
			"VACUUM FULL ANALYZE",
		} {
			if _, err := c.Super(ctx, database, sql); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c Cluster) databases(ctx context.Context) ([]string, error) {
	out, err := c.Super(ctx, "postgres", "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname")
	if err != nil {
		return nil, err
	}
	databases := strings.Fields(out)
	if len(databases) == 0 {
		return nil, fmt.Errorf("postgres: list the databases: an empty answer")
	}
	return databases, nil
}

// tableFiles are the tables' files, by database and table.
func (c Cluster) tableFiles(ctx context.Context) (map[string]string, error) {
	databases, err := c.databases(ctx)
	if err != nil {
		return nil, err
	}
	files := map[string]string{}
	for _, database := range databases {
		out, err := c.Super(ctx, database, `SELECT oid || ' ' || pg_relation_filenode(oid) FROM pg_class
			WHERE relkind IN ('r', 't', 'm') AND relpersistence <> 't' AND pg_relation_filenode(oid) IS NOT NULL`)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			oid, file, _ := strings.Cut(strings.TrimSpace(line), " ")
			files[database+" "+oid] = file
		}
	}
	return files, nil
}
