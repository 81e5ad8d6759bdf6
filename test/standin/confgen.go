package standin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/jackc/pgx/v5"
	"gopkg.in/yaml.v3"
)

// Confgen stands in for the part of xivo-confgend that turns the database into
// xivo-dird's configuration. A document that cannot be generated, for whatever
// reason and by whichever row, is answered with the last one that could: the
// reader never sees an error.
type Confgen struct {
	Database string // DSN
	Cache    string // folder of the last good documents
	Log      *slog.Logger
}

// dirdConfig is what xivo-dird reads at its start.
type dirdConfig struct {
	Sources  map[string]source `yaml:"sources,omitempty"`
	Services struct {
		Lookup map[string]lookupService `yaml:"lookup"`
	} `yaml:"services,omitempty"`
	Views struct {
		Displays         map[string][]displayColumn `yaml:"displays"`
		ProfileToDisplay map[string]string          `yaml:"profile_to_display"`
	} `yaml:"views,omitempty"`
}

type source struct {
	Type              string            `yaml:"type"`
	Name              string            `yaml:"name"`
	SearchedColumns   []string          `yaml:"searched_columns"`
	FirstMatched      []string          `yaml:"first_matched_columns"`
	FormatColumns     map[string]string `yaml:"format_columns"`
	UniqueColumn      string            `yaml:"unique_column,omitempty"`
	Confd             *confdConfig      `yaml:"confd_config,omitempty"`
	ExtraSearchParams map[string]string `yaml:"extra_search_params,omitempty"`
}

type confdConfig struct {
	HTTPS    bool   `yaml:"https"`
	Host     string `yaml:"host"`
	Port     int    `yaml:"port,omitempty"`
	Timeout  int    `yaml:"timeout"` // seconds
	Version  string `yaml:"version"`
	Verify   any    `yaml:"verify_certificate"` // false, true, or the path of a CA file
	Username string `yaml:"username,omitempty"`
	Password string `yaml:"password,omitempty"`
}

type lookupService struct {
	Sources []string `yaml:"sources"`
	Timeout float64  `yaml:"timeout"` // seconds
}

type displayColumn struct {
	Title   string  `yaml:"title"`
	Type    string  `yaml:"type"`
	Default *string `yaml:"default"`
	Field   string  `yaml:"field"`
}

// The documents, each generated and cached on its own.
var documents = []struct {
	name     string
	generate func(context.Context, *pgx.Conn, *dirdConfig) error
}{
	{"sources", generateSources},
	{"services", generateServices},
	{"views", generateViews},
}

// Dird returns xivo-dird's configuration as of now, with a cached document for
// each that cannot be generated, and nothing for one that never could.
func (g *Confgen) Dird(ctx context.Context) dirdConfig {
	var config dirdConfig
	for _, d := range documents {
		text, err := g.document(ctx, d.generate)
		file := filepath.Join(g.Cache, "dird", d.name+".yml")
		if err == nil {
			if err := store(file, text); err != nil {
				g.Log.Error("cache a document", "document", d.name, "err", err)
			}
		} else {
			text, _ = os.ReadFile(file)
			g.Log.Error("document not generated: the cached one is served", "document", d.name, "err", err, "cached", len(text) > 0)
		}
		if err := yaml.Unmarshal(text, &config); err != nil {
			g.Log.Error("cached document", "document", d.name, "err", err)
		}
	}
	return config
}

func (g *Confgen) document(ctx context.Context, generate func(context.Context, *pgx.Conn, *dirdConfig) error) ([]byte, error) {
	var config dirdConfig
	err := database(g.Database).do(ctx, func(conn *pgx.Conn) error { return generate(ctx, conn, &config) })
	if err != nil {
		return nil, err
	}
	return yaml.Marshal(config)
}

// store keeps a document that may hold passwords.
func store(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

var supportedTypes = []string{"csv", "csv_ws", "ldap", "phonebook", "xivo"}

func generateSources(ctx context.Context, conn *pgx.Conn, config *dirdConfig) error {
	separated, err := contextSeparation(ctx, conn)
	if err != nil {
		return err
	}
	link, err := directoryLink(ctx, conn)
	if err != nil {
		return err
	}

	formats, err := formatColumns(ctx, conn)
	if err != nil {
		return err
	}
	config.Sources = map[string]source{}
	rows, _ := conn.Query(ctx, `SELECT ctidirectories.id, coalesce(ctidirectories.name, ''), ctidirectories.match_direct, ctidirectories.match_reverse,
			directories.dirtype, directories.uri, coalesce(directories.xivo_username, ''), coalesce(directories.xivo_password, ''),
			directories.xivo_verify_certificate, coalesce(directories.xivo_custom_ca_path, '')
		FROM ctidirectories JOIN directories ON `+link+` ORDER BY ctidirectories.id, directories.id`)
	var d definition
	_, err = pgx.ForEachRow(rows, []any{&d.id, &d.name, &d.direct, &d.reverse, &d.dirtype, &d.uri, &d.username, &d.password, &d.verify, &d.ca}, func() error {
		s, err := d.source(formats[d.id])
		if err != nil || !slices.Contains(supportedTypes, d.dirtype) {
			return err
		}
		// Nothing keeps two definitions, or two directories with one uri,
		// apart: the later one wins.
		config.Sources[d.name] = s
		return nil
	})
	if err != nil || !separated {
		return err
	}
	return separateSources(ctx, conn, config)
}

// formatColumns reads how the definitions make columns, by their ids.
func formatColumns(ctx context.Context, conn *pgx.Conn) (map[int]map[string]string, error) {
	formats := map[int]map[string]string{}
	rows, _ := conn.Query(ctx, "SELECT dir_id, fieldname, coalesce(value, '') FROM ctidirectoryfields")
	var id int
	var field, format string
	if _, err := pgx.ForEachRow(rows, []any{&id, &field, &format}, func() error {
		if formats[id] == nil {
			formats[id] = map[string]string{}
		}
		formats[id][field] = format
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read ctidirectoryfields: %w", err)
	}
	return formats, nil
}

// definition is a row of ctidirectories with the directory that it uses.
type definition struct {
	id                 int
	name               string
	direct, reverse    string
	dirtype            string
	uri                *string
	username, password string
	verify             bool
	ca                 string
}

// source is what xivo-dird is told of it. A wrong list of columns is an error
// whatever the type, as it is in the original.
func (d definition) source(formats map[string]string) (source, error) {
	s := source{Type: d.dirtype, Name: d.name, FormatColumns: formats}
	var err error
	if s.SearchedColumns, err = columnList(d.direct); err != nil {
		return source{}, fmt.Errorf("match_direct of ctidirectories %q: %w", d.name, err)
	}
	if s.FirstMatched, err = columnList(d.reverse); err != nil {
		return source{}, fmt.Errorf("match_reverse of ctidirectories %q: %w", d.name, err)
	}
	if d.dirtype != "xivo" {
		return s, nil
	}
	if d.uri == nil {
		return source{}, fmt.Errorf("directory of ctidirectories %q: no uri", d.name)
	}
	c, err := parseConfd(*d.uri)
	if err != nil {
		return source{}, fmt.Errorf("uri of ctidirectories %q: %w", d.name, err)
	}
	// One without the other is none.
	if d.username != "" && d.password != "" {
		c.Username, c.Password = d.username, d.password
	}
	c.Verify = d.verify
	if d.verify && d.ca != "" {
		c.Verify = d.ca
	}
	s.Confd, s.UniqueColumn = &c, "id"
	return s, nil
}

// directoryLink is how a definition finds its directory: by the uri, as text,
// until directory_id came with 16.13.
func directoryLink(ctx context.Context, conn *pgx.Conn) (string, error) {
	byID, err := hasColumn(ctx, conn, "ctidirectories", "directory_id")
	if err != nil {
		return "", err
	}
	if byID {
		return "directories.id = ctidirectories.directory_id", nil
	}
	return "directories.uri = ctidirectories.uri", nil
}

// parseConfd takes a uri apart as confgend does: at "://", then at the first
// colon. It is not a URL parser. A trailing slash or an IPv6 address makes it
// fail; a path without a port becomes part of the host; without a scheme there
// is no host at all.
func parseConfd(uri string) (confdConfig, error) {
	scheme, end, _ := strings.Cut(uri, "://")
	host, port, _ := strings.Cut(end, ":")
	c := confdConfig{HTTPS: scheme == "https", Host: host, Timeout: 4, Version: "1.1"}
	if port != "" {
		n, err := strconv.Atoi(strings.TrimSpace(port))
		if err != nil {
			return confdConfig{}, fmt.Errorf("invalid literal for int() with base 10: %q", port)
		}
		c.Port = n
	}
	return c, nil
}

// columnList reads a JSON array of names; the empty text is an empty array.
func columnList(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	var columns []string
	if err := json.Unmarshal([]byte(text), &columns); err != nil {
		return nil, fmt.Errorf("not a JSON array: %w", err)
	}
	return columns, nil
}

// separateSources gives every profile a source of its own for each XiVO, which
// then shows the users of the context of that name only. Names that are not
// ASCII end it all, as in Python 2.
func separateSources(ctx context.Context, conn *pgx.Conn, config *dirdConfig) error {
	rows, _ := conn.Query(ctx, "SELECT coalesce(name, '') FROM cticontexts")
	profiles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read cticontexts: %w", err)
	}
	separated := map[string]source{}
	for name, s := range config.Sources {
		if s.Type != "xivo" {
			separated[name] = s
			continue
		}
		if !ascii(name) {
			return fmt.Errorf("UnicodeEncodeError: 'ascii' codec can't encode the source name %q", name)
		}
		for _, profile := range profiles {
			of := s
			of.Name = name + "_" + profile
			of.ExtraSearchParams = map[string]string{"context": profile}
			separated[of.Name] = of
		}
	}
	config.Sources = separated
	return nil
}

func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r > unicode.MaxASCII })
}

func generateServices(ctx context.Context, conn *pgx.Conn, config *dirdConfig) error {
	separated, err := contextSeparation(ctx, conn)
	if err != nil {
		return err
	}
	// A database without a row here has no services at all: 16.14 shipped so.
	var reverse string
	if err := conn.QueryRow(ctx, "SELECT directories FROM ctireversedirectories LIMIT 1").Scan(&reverse); err != nil {
		return fmt.Errorf("read ctireversedirectories: %w", err)
	}
	if _, err := columnList(reverse); err != nil {
		return fmt.Errorf("ctireversedirectories: %w", err)
	}

	var xivos []string
	if separated {
		link, err := directoryLink(ctx, conn)
		if err != nil {
			return err
		}
		rows, _ := conn.Query(ctx, `SELECT coalesce(ctidirectories.name, '') FROM ctidirectories JOIN directories ON `+link+`
			WHERE directories.dirtype = 'xivo'`)
		if xivos, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return fmt.Errorf("read ctidirectories: %w", err)
		}
	}
	config.Services.Lookup = map[string]lookupService{}
	return eachProfile(ctx, conn, func(profile, directories, _ string) error {
		// Split at commas and nothing else: a space stays part of the name, and
		// the empty text names one source, "".
		sources := strings.Split(directories, ",")
		for i, name := range sources {
			if slices.Contains(xivos, name) {
				sources[i] = name + "_" + profile
			}
		}
		config.Services.Lookup[profile] = lookupService{Sources: append(sources, "personal"), Timeout: 2.9}
		return nil
	})
}

func generateViews(ctx context.Context, conn *pgx.Conn, config *dirdConfig) error {
	config.Views.Displays = map[string][]displayColumn{}
	rows, _ := conn.Query(ctx, "SELECT coalesce(name, ''), data FROM ctidisplays")
	var name, data string
	if _, err := pgx.ForEachRow(rows, []any{&name, &data}, func() error {
		var lines map[string][]string
		if err := json.Unmarshal([]byte(data), &lines); err != nil {
			return fmt.Errorf("data of display %q: %w", name, err)
		}
		// Sorted as text: "100" comes before "20".
		keys := make([]string, 0, len(lines))
		for key := range lines {
			keys = append(keys, key)
		}
		slices.Sort(keys)
		columns := []displayColumn{}
		for _, key := range keys {
			line := lines[key]
			if len(line) < 4 {
				return fmt.Errorf("column %s of display %q: not title, type, default and field", key, name)
			}
			column := displayColumn{Title: line[0], Type: line[1], Field: line[3]}
			if line[2] != "" {
				column.Default = &line[2]
			}
			columns = append(columns, column)
		}
		config.Views.Displays[name] = columns
		return nil
	}); err != nil {
		return fmt.Errorf("read ctidisplays: %w", err)
	}

	config.Views.ProfileToDisplay = map[string]string{}
	return eachProfile(ctx, conn, func(profile, _, display string) error {
		config.Views.ProfileToDisplay[profile] = display
		return nil
	})
}

// eachProfile goes through the contexts whose display exists; the others have
// no profile.
func eachProfile(ctx context.Context, conn *pgx.Conn, f func(profile, directories, display string) error) error {
	rows, _ := conn.Query(ctx, `SELECT coalesce(cticontexts.name, ''), cticontexts.directories, ctidisplays.name
		FROM cticontexts JOIN ctidisplays ON cticontexts.display = ctidisplays.name ORDER BY cticontexts.id`)
	var profile, directories, display string
	if _, err := pgx.ForEachRow(rows, []any{&profile, &directories, &display}, func() error {
		return f(profile, directories, display)
	}); err != nil {
		return fmt.Errorf("read cticontexts: %w", err)
	}
	return nil
}

func contextSeparation(ctx context.Context, conn *pgx.Conn) (bool, error) {
	has, err := hasColumn(ctx, conn, "ctimain", "context_separation")
	if err != nil || !has {
		return false, err
	}
	var on int
	err = conn.QueryRow(ctx, "SELECT coalesce(context_separation, 0) FROM ctimain LIMIT 1").Scan(&on)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read ctimain: %w", err)
	}
	return on != 0, nil
}

func hasColumn(ctx context.Context, conn *pgx.Conn, table, column string) (has bool, err error) {
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM information_schema.columns
		WHERE table_schema = 'public' AND table_name = $1 AND column_name = $2)`, table, column).Scan(&has)
	if err != nil {
		return false, fmt.Errorf("look for column %s.%s: %w", table, column, err)
	}
	return has, nil
}
