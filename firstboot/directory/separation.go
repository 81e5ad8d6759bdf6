package directory

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// ContextSeparation says whether XiVO's option of that name is on (it exists
// from 15.20 on). xivo-dird then shows to a user only those users of another
// node that are in a context of the same name.
func ContextSeparation(ctx context.Context, conn *pgx.Conn) (bool, error) {
	columns, err := postgres.Columns(ctx, conn, "ctimain")
	if err == nil && columns == nil {
		err = errors.New("directory: read ctimain: there is no such table")
	}
	if err != nil || !columns["context_separation"] {
		return false, err
	}
	on, err := postgres.Rows(ctx, conn, pgx.RowTo[bool], "SELECT coalesce(context_separation, 0) <> 0 FROM ctimain ORDER BY id LIMIT 1")
	if err != nil {
		return false, fmt.Errorf("directory: read ctimain: %w", err)
	}
	return len(on) > 0 && on[0], nil
}
