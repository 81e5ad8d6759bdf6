package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

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
	columns, err := postgres.Columns(ctx, q, "ctidirectories")
	if err != nil {
		return nil, err
	}
	t := &tables{linkByID: columns["directory_id"]}

	t.sources, err = postgres.Rows(ctx, q, pgx.RowToStructByPos[source], `SELECT id, coalesce(uri, ''), dirtype, coalesce(name, ''), description,
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
	rows, err := postgres.Rows(ctx, q, pgx.RowToStructByPos[row], `SELECT id, coalesce(name, ''), `+link+`, match_direct, match_reverse, coalesce(description, '')
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
	fields, err := postgres.Rows(ctx, q, pgx.RowToStructByPos[field], "SELECT dir_id, fieldname, coalesce(value, '') FROM ctidirectoryfields ORDER BY dir_id, fieldname")
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

	t.contexts, err = postgres.Rows(ctx, q, pgx.RowToStructByPos[contextRow], "SELECT id, coalesce(name, ''), directories FROM cticontexts ORDER BY id")
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
		if host, port := hostOf(s.URI); s.Kind == "xivo" && !OfMesh(s.Name) && wanted[host] && port == confdPort {
			return s, true
		}
	}
	return source{}, false
}

func (t *tables) sourcesNamed(name string) []source {
	return slices.DeleteFunc(slices.Clone(t.sources), func(s source) bool { return s.Name != name })
}

func (t *tables) definitionsNamed(name string) []definition {
	return slices.DeleteFunc(slices.Clone(t.definitions), func(d definition) bool { return d.Name != name })
}

// meshNames returns the names that Name makes, wherever one of them stands.
func (t *tables) meshNames() []string {
	var names []string
	for _, s := range t.sources {
		names = append(names, s.Name)
	}
	for _, d := range t.definitions {
		names = append(names, d.Name)
	}
	for _, c := range t.contexts {
		for entry := range strings.SplitSeq(c.Directories, ",") {
			names = append(names, strings.TrimSpace(entry))
		}
	}
	slices.Sort(names)
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return !OfMesh(n) })
}
