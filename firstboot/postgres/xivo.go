package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// CheckSchema is an error when the database has a column that the version of
// the platform has not, or lacks one that it has. It names the version file and
// every such column: one of the two is not what it says it is.
func CheckSchema(ctx context.Context, conn *pgx.Conn, p *platform.Platform) error {
	var differs []string
	for _, name := range slices.Sorted(maps.Keys(p.Traits.Columns)) {
		table, column, _ := strings.Cut(name, ".")
		columns, err := Columns(ctx, conn, table)
		if err != nil {
			return err
		}
		switch has, wanted := columns[column], p.Traits.Columns[name]; {
		case has && !wanted:
			differs = append(differs, "has "+name)
		case !has && wanted:
			differs = append(differs, "lacks "+name)
		}
	}
	if differs == nil {
		return nil
	}
	return fmt.Errorf("postgres: %s says XiVO %s, but the database is of another version: it %s; nothing was written; end the upgrade, or mend the file",
		p.VersionFile, p.Version, strings.Join(differs, " and "))
}

// WizardPassed returns general.configured, XiVO's own mark from 16.06 on. A
// table without its row is an error.
func WizardPassed(ctx context.Context, conn *pgx.Conn) (passed bool, err error) {
	if err := conn.QueryRow(ctx, "SELECT configured FROM general").Scan(&passed); err != nil {
		return false, fmt.Errorf("postgres: general.configured: %w", err)
	}
	return passed, nil
}
