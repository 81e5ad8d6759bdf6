package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// Variable is what XiVO's daemons take the UUID from, from 16.02 on.
const Variable = "XIVO_UUID"

const (
	profileFile = "/etc/profile.d/xivo_uuid.sh"
	systemdFile = "/etc/systemd/system.conf"
	defaultFile = "/etc/default/xivo"
)

// DatabaseUUID returns the UUID of the one row of infos. No row, several, or
// something that is no UUID is an error: readers take any row, so a second one
// is a random identity.
func DatabaseUUID(ctx context.Context, conn *pgx.Conn) (uuid.UUID, error) {
	text, err := databaseUUID(ctx, conn)
	if err != nil {
		return uuid.Nil, err
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return uuid.Nil, fmt.Errorf("identity: infos.uuid is no UUID: %w", err)
	}
	return id, nil
}

// UUID returns the XiVO UUID that this server's daemons run with: the one of the
// database, and from 17.03 on, where that is a copy, XIVO_UUID of the service
// manager or of the file that it comes from. A server without the variable has
// the database's.
func UUID(ctx context.Context, conn *pgx.Conn, p *platform.Platform) (uuid.UUID, error) {
	if !p.Traits.UUIDFromEnvironment {
		return DatabaseUUID(ctx, conn)
	}
	text, err := p.Init.Environment(ctx, Variable)
	if err != nil {
		return uuid.Nil, fmt.Errorf("identity: %s of the service manager: %w", Variable, err)
	}
	from := "the service manager"
	if text == "" {
		raw, err := files.ReadFile(p.Path(profileFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return uuid.Nil, fmt.Errorf("identity: %w", err)
		}
		text, from = strings.TrimSpace(strings.TrimPrefix(string(raw), "export "+Variable+"=")), profileFile
	}
	if text == "" {
		return DatabaseUUID(ctx, conn)
	}
	id, err := uuid.Parse(text)
	if err != nil {
		return uuid.Nil, fmt.Errorf("identity: %s of %s is no UUID: %w", Variable, from, err)
	}
	return id, nil
}

func databaseUUID(ctx context.Context, q postgres.Querier) (string, error) {
	found, err := postgres.Rows(ctx, q, pgx.RowTo[string], "SELECT uuid FROM infos")
	if err != nil {
		return "", fmt.Errorf("identity: read infos: %w", err)
	}
	if len(found) != 1 {
		return "", fmt.Errorf("identity: table infos has %d rows and must have one: leave the row of this server and delete the others", len(found))
	}
	return found[0], nil
}

// UUIDInDatabase is the UUID in the one row of infos.
func UUIDInDatabase(conn *pgx.Conn, id uuid.UUID) engine.Resource { return uuidRow{conn, id} }

type uuidRow struct {
	conn *pgx.Conn
	id   uuid.UUID
}

// Diff compares the row.
func (u uuidRow) Diff(ctx context.Context) ([]string, error) {
	have, err := databaseUUID(ctx, u.conn)
	if err != nil || have == u.id.String() {
		return nil, err
	}
	// What it is now tells whose server this was.
	return []string{"infos.uuid is another one, should be " + u.id.String()}, nil
}

// Apply updates the row in place: nothing else of it changes, and a table with
// no row or several is refused.
func (u uuidRow) Apply(ctx context.Context) error {
	return postgres.Locked(ctx, u.conn, "infos", func(tx pgx.Tx) error {
		if _, err := databaseUUID(ctx, tx); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "UPDATE infos SET uuid = $1", u.id.String()); err != nil {
			return fmt.Errorf("identity: update infos.uuid: %w", err)
		}
		return nil
	})
}

// UUIDInFiles is the UUID in the three files that hand XIVO_UUID to logins and
// daemons; everything else that they say stays. XiVO's own tool leaves them alone
// once they exist.
func UUIDInFiles(p *platform.Platform, id uuid.UUID) engine.Resource {
	says := "does not hold " + Variable + "=" + id.String()
	return edits{p, []edit{
		{profileFile, says, func([]byte) []byte { return []byte("export " + Variable + "=" + id.String() + "\n") }},
		{systemdFile, says, func(have []byte) []byte { return inSystemd(have, id.String()) }},
		{defaultFile, says, func(have []byte) []byte { return inDefault(have, id.String()) }},
	}}
}

// inManagerSetting finds the variable among the assignments of a
// DefaultEnvironment= line, quoted as a whole or not at all.
var inManagerSetting = regexp.MustCompile(`([=\s])("XIVO_UUID=[^"]*"|'XIVO_UUID=[^']*'|XIVO_UUID=\S*)`)

const setting = "DefaultEnvironment="

// inSystemd sets the variable in system.conf and keeps the others: in every
// line that has it, else at the end of the last DefaultEnvironment line, else in
// a line of its own.
func inSystemd(have []byte, id string) []byte {
	assignment := `"` + Variable + "=" + id + `"`
	lines := strings.Split(strings.TrimSuffix(string(have), "\n"), "\n")
	manager, last, done := -1, -1, false
	for i, line := range lines {
		trimmed := strings.TrimSpace(line)
		if trimmed == "[Manager]" {
			manager = i
		}
		if !strings.HasPrefix(trimmed, setting) {
			continue
		}
		// A line without a value takes back what the lines before it set.
		last = i
		if trimmed == setting {
			done = false
		}
		if inManagerSetting.MatchString(line) {
			lines[i] = inManagerSetting.ReplaceAllString(line, "${1}"+assignment)
			done = true
		}
	}
	switch {
	case done:
	case last >= 0 && strings.TrimSpace(lines[last]) == setting:
		lines[last] += assignment
	case last >= 0:
		lines[last] += " " + assignment
	case manager >= 0:
		lines = append(lines[:manager+1], append([]string{setting + assignment}, lines[manager+1:]...)...)
	default:
		lines = append(strings.Split(strings.TrimPrefix(strings.Join(lines, "\n")+"\n[Manager]", "\n"), "\n"), setting+assignment)
	}
	return []byte(strings.Join(lines, "\n") + "\n")
}

// inDefault leaves one line with the variable, where the last one was: that is
// the one that counts for who reads the file, and an old one is a leftover.
func inDefault(have []byte, id string) []byte {
	const line = "export " + Variable + "="
	var lines []string
	if len(have) > 0 {
		lines = strings.Split(strings.TrimSuffix(string(have), "\n"), "\n")
	}
	var out []string
	at := -1
	for _, l := range lines {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimSpace(l), "export "), Variable+"=") {
			at = len(out)
			continue
		}
		out = append(out, l)
	}
	if at < 0 {
		at = len(out)
	}
	out = append(out[:at], append([]string{line + id}, out[at:]...)...)
	return []byte(strings.Join(out, "\n") + "\n")
}

// UUIDInManager is the UUID in the environment that the service manager hands
// to what it starts from now on. It beats the one of system.conf, which counts
// at the next boot.
func UUIDInManager(p *platform.Platform, id uuid.UUID) engine.Resource { return uuidVariable{p, id} }

type uuidVariable struct {
	platform *platform.Platform
	id       uuid.UUID
}

// Diff asks the service manager.
func (u uuidVariable) Diff(ctx context.Context) ([]string, error) {
	have, err := u.platform.Init.Environment(ctx, Variable)
	if err != nil {
		return nil, fmt.Errorf("identity: %s of the service manager: %w", Variable, err)
	}
	if have == u.id.String() {
		return nil, nil
	}
	return []string{"the service manager does not have " + Variable + "=" + u.id.String()}, nil
}

// Apply sets it.
func (u uuidVariable) Apply(ctx context.Context) error {
	if err := u.platform.Init.SetEnvironment(ctx, Variable, u.id.String()); err != nil {
		return fmt.Errorf("identity: %s of the service manager: %w", Variable, err)
	}
	return nil
}
