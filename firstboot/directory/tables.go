package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// switchboard is the context of the switchboard's own list: it shows what its
// operator chose, never what we add.
const switchboard = "__switchboard_directory"

// tables is all that the database says about directories. It is small, so it
// is read whole and reasoned about in Go, the same way for every schema.
type tables struct {
	// linkByID: definitions point to their source by directory_id (from 16.13
	// on); before, by an equal uri.
	linkByID    bool
	sources     []source
	definitions []definition
	contexts    []contextRow
}

type source struct {
	ID              int
	URI             string
	Kind            string
	Name            string
	Description     string
	User, Password  string
	Verify          bool
	CertificateFile string
}

type definition struct {
	ID           int
	Name         string
	URI          string // before 16.13
	SourceID     int    // from 16.13 on; 0: none
	MatchDirect  string
	MatchReverse string
	Description  string
	Fields       map[string]string
}

type contextRow struct {
	ID          int
	Name        string
	Directories string // names of definitions, separated by commas
}

// read returns the tables as they are.
func read(ctx context.Context, q postgres.Querier) (*tables, error) {
	columns, err := columnsOf(ctx, q, "ctidirectories")
	if err != nil {
		return nil, err
	}
	t := &tables{linkByID: columns["directory_id"]}

	t.sources, err = rowsOf[source](ctx, q, `SELECT id, coalesce(uri, ''), dirtype, coalesce(name, ''), description,
		coalesce(xivo_username, ''), coalesce(xivo_password, ''), xivo_verify_certificate, coalesce(xivo_custom_ca_path, '')
		FROM directories ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("directory: read directories: %w", err)
	}

	link := "coalesce(uri, ''), 0"
	if t.linkByID {
		link = "'', coalesce(directory_id, 0)"
	}
	type row struct {
		ID                                     int
		Name, URI                              string
		SourceID                               int
		MatchDirect, MatchReverse, Description string
	}
	rows, err := rowsOf[row](ctx, q, `SELECT id, coalesce(name, ''), `+link+`, match_direct, match_reverse, coalesce(description, '')
		FROM ctidirectories ORDER BY id`)
	if err != nil {
		return nil, fmt.Errorf("directory: read ctidirectories: %w", err)
	}
	for _, r := range rows {
		t.definitions = append(t.definitions, definition{r.ID, r.Name, r.URI, r.SourceID, r.MatchDirect, r.MatchReverse, r.Description, map[string]string{}})
	}

	type field struct {
		ID          int
		Name, Value string
	}
	fields, err := rowsOf[field](ctx, q, "SELECT dir_id, fieldname, coalesce(value, '') FROM ctidirectoryfields ORDER BY dir_id, fieldname")
	if err != nil {
		return nil, fmt.Errorf("directory: read ctidirectoryfields: %w", err)
	}
	for _, f := range fields {
		for _, d := range t.definitions {
			if d.ID == f.ID {
				d.Fields[f.Name] = f.Value
			}
		}
	}

	t.contexts, err = rowsOf[contextRow](ctx, q, "SELECT id, coalesce(name, ''), directories FROM cticontexts ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("directory: read cticontexts: %w", err)
	}
	return t, nil
}

// linked says whether a definition reads a source.
func (t *tables) linked(d definition, s source) bool {
	if t.linkByID {
		return d.SourceID == s.ID
	}
	return s.URI != "" && d.URI == s.URI
}

// local returns the definition of this server's own users: the one that reads
// the local confd. A fresh 16.13 links its definitions to nothing; there, and
// only where no other is found, it is the one called internal.
func (t *tables) local() (definition, error) {
	for _, d := range t.definitions {
		for _, s := range t.sources {
			if s.Kind == "xivo" && local(s.URI) && t.linked(d, s) {
				return d, nil
			}
		}
	}
	for _, d := range t.definitions {
		if d.Name == "internal" {
			return d, nil
		}
	}
	return definition{}, fmt.Errorf("directory: no definition reads this server's own users (http://localhost:9487), so there is none to copy the fields from: " +
		"add one in the web interface (it is called internal in a fresh XiVO)")
}

// byHand returns the first source that an operator made for one of the hosts.
func (t *tables) byHand(hosts ...string) (source, bool) {
	wanted := map[string]bool{}
	for _, h := range hosts {
		host, _ := hostOf("https://" + h)
		wanted[host] = true
	}
	for _, s := range t.sources {
		if host, port := hostOf(s.URI); s.Kind == "xivo" && !Ours(s.Name) && wanted[host] && port == confdPort {
			return s, true
		}
	}
	return source{}, false
}

// listing returns the names of the contexts that list a definition, as
// xivo-confgend reads them: no space is trimmed.
func (t *tables) listing(name string) []string {
	var found []string
	for _, c := range t.contexts {
		if slices.Contains(strings.Split(c.Directories, ","), name) {
			found = append(found, c.Name)
		}
	}
	return found
}

// withEntry adds a name to a context's list. A list that has it once, spelled
// as xivo-confgend reads it, is returned as it is. No entry that we write is
// empty: it would be a source without a name.
func withEntry(list, name string) string {
	others, spelled := entries(list, name)
	if slices.Equal(spelled, []string{name}) {
		return list
	}
	return strings.Join(append(others, name), ",")
}

// withoutEntry takes a name out of a context's list, however it is spelled. A
// list without it is returned as it is.
func withoutEntry(list, name string) string {
	others, spelled := entries(list, name)
	if len(spelled) == 0 {
		return list
	}
	return strings.Join(others, ",")
}

// entries divides a list into the entries that mean the name and the others.
func entries(list, name string) (others, spelled []string) {
	for entry := range strings.SplitSeq(list, ",") {
		switch {
		case strings.TrimSpace(entry) == name:
			spelled = append(spelled, entry)
		case entry != "":
			others = append(others, entry)
		}
	}
	return others, spelled
}

func rowsOf[T any](ctx context.Context, q postgres.Querier, sql string, args ...any) ([]T, error) {
	return postgres.Rows(ctx, q, pgx.RowToStructByPos[T], sql, args...)
}

// columnsOf returns the columns of a table; none is an error.
func columnsOf(ctx context.Context, q postgres.Querier, table string) (map[string]bool, error) {
	names, err := postgres.Rows(ctx, q, pgx.RowTo[string],
		"SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped", table)
	if err != nil {
		return nil, fmt.Errorf("directory: columns of %s: %w", table, err)
	}
	columns := map[string]bool{}
	for _, n := range names {
		columns[n] = true
	}
	return columns, nil
}

// nextID returns a free id of a table that the transaction has locked. The
// sequence may lag behind rows that were inserted with an id, and databases
// that came a long way may have none.
func nextID(ctx context.Context, tx pgx.Tx, table string) (int, error) {
	var sequence *string
	var highest, id int
	err := tx.QueryRow(ctx, "SELECT pg_get_serial_sequence($1::text, 'id'), coalesce(max(id), 0)::bigint FROM "+table, table).Scan(&sequence, &highest)
	if err == nil && sequence == nil {
		return highest + 1, nil
	}
	if err == nil {
		err = tx.QueryRow(ctx, "SELECT setval($1::text::regclass, greatest(nextval($1::text::regclass), $2::bigint))", *sequence, highest+1).Scan(&id)
	}
	if err != nil {
		return 0, fmt.Errorf("directory: next id of %s: %w", table, err)
	}
	return id, nil
}

const directoryTables = "directories, ctidirectories, ctidirectoryfields, cticontexts"
