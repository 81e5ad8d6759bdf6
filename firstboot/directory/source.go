package directory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// defaultMatch is what a source is searched by where the local definition does
// not say: without any column nothing is ever found.
const defaultMatch = `["firstname","lastname"]`

// Peer is another node whose users are to be found here.
type Peer struct {
	UUID    uuid.UUID
	Host    string // shown to people
	Address string // IPv4 or host name; xivo-dird can take nothing else
	// Known are other hosts that lead there: an operator may have written one.
	Known []string
}

// Options are what the user's document says about directories.
type Options struct {
	// Contexts names the contexts that list the source. Empty: those that list
	// this server's own users, the switchboard's never.
	Contexts          []string
	VerifyCertificate bool
	CAFile            string // with VerifyCertificate; empty: the system's CAs
	// Suspended takes the source out of all contexts and keeps its rows: a peer
	// that does not answer would slow down every lookup.
	Suspended bool
}

// PeerSource is what Source returns.
type PeerSource struct {
	conn     *pgx.Conn
	peer     Peer
	account  string
	password secret.Secret
	options  Options
}

// Source is everything that makes a peer's users searchable: the source with
// the account, the definition with the fields of the local definition, and the
// entries in the contexts. Where an operator already made a source for the
// peer's address, that one stays as it is, and ours is not there.
func Source(conn *pgx.Conn, peer Peer, account string, password secret.Secret, options Options) *PeerSource {
	return &PeerSource{conn, peer, account, password, options}
}

// Diff compares the rows. Passwords are never shown.
func (s *PeerSource) Diff(ctx context.Context) ([]string, error) {
	t, err := read(ctx, s.conn)
	if err != nil {
		return nil, err
	}
	p, err := s.plan(t)
	return p.says, err
}

// Apply writes what differs, in one transaction.
func (s *PeerSource) Apply(ctx context.Context) error {
	return change(ctx, s.conn, s.plan)
}

// plan is the list of changes that make the tables as wanted, each with what it
// says to a person.
type plan struct {
	says []string
	do   []func(ctx context.Context, tx pgx.Tx) error
}

func (p *plan) add(says string, do func(ctx context.Context, tx pgx.Tx) error) {
	p.says = append(p.says, says)
	p.do = append(p.do, do)
}

// change reads the tables under a lock and does what the plan for them says.
func change(ctx context.Context, conn *pgx.Conn, planFor func(*tables) (plan, error)) error {
	return postgres.Locked(ctx, conn, directoryTables, func(tx pgx.Tx) error {
		t, err := read(ctx, tx)
		if err != nil {
			return err
		}
		p, err := planFor(t)
		if err != nil {
			return err
		}
		for _, do := range p.do {
			if err := do(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *PeerSource) plan(t *tables) (plan, error) {
	name := Name(s.peer.UUID)
	uri, err := uriOf(s.peer.Address)
	if err != nil {
		return plan{}, err
	}
	if _, found := t.byHand(append([]string{s.peer.Address}, s.peer.Known...)...); found {
		return removal(t, name), nil
	}
	local, err := t.local()
	if err != nil {
		return plan{}, err
	}
	contexts, err := s.contexts(t, local)
	if err != nil {
		return plan{}, err
	}

	var p plan
	keep := s.planSource(&p, t, name, uri)
	s.planDefinition(&p, t, local, name, uri, keep)
	planContexts(&p, t, name, contexts)
	// No column is unique. Last, as a definition may still have pointed to one.
	for i, extra := range t.sourcesNamed(name) {
		if i > 0 {
			p.add(fmt.Sprintf("the source %s is there twice", name), deleteByID("directories", extra.ID))
		}
	}
	return p, nil
}

// planSource plans the row of directories. The pointer is to the id that it
// will have, known when the plan is carried out.
func (s *PeerSource) planSource(p *plan, t *tables, name, uri string) (id *int) {
	want := source{
		URI:         uri,
		Kind:        "xivo",
		Name:        name,
		Description: "users of " + s.peer.Host + " (xivo-firstboot)",
		User:        s.account,
		Password:    s.password.Reveal(),
		Verify:      s.options.VerifyCertificate,
	}
	var caFile any
	if want.Verify && s.options.CAFile != "" {
		want.CertificateFile, caFile = s.options.CAFile, s.options.CAFile
	}
	r := record{
		"uri": want.URI, "dirtype": want.Kind, "name": want.Name, "description": want.Description,
		"xivo_username": want.User, "xivo_password": want.Password,
		"xivo_verify_certificate": want.Verify, "xivo_custom_ca_path": caFile,
	}

	id = new(int)
	found := t.sourcesNamed(name)
	if len(found) == 0 {
		p.add(fmt.Sprintf("the source %s of %s (%s) is missing", name, s.peer.Host, uri), func(ctx context.Context, tx pgx.Tx) (err error) {
			*id, err = r.insert(ctx, tx, "directories")
			return err
		})
		return id
	}
	have := found[0]
	*id, want.ID = have.ID, have.ID
	if have != want {
		says := fmt.Sprintf("the source %s (%s) differs", name, s.peer.Host)
		if have.Password != want.Password {
			says += ", also its password"
		}
		p.add(says, func(ctx context.Context, tx pgx.Tx) error { return r.update(ctx, tx, "directories", have.ID) })
	}
	return id
}

// planDefinition plans the row of ctidirectories and its fields.
func (s *PeerSource) planDefinition(p *plan, t *tables, local definition, name, uri string, sourceID *int) {
	want := definition{
		Name:        name,
		MatchDirect: matchOf(local),
		Description: "users of " + s.peer.Host,
		Fields:      local.Fields,
	}
	r := record{
		"name": want.Name, "delimiter": nil, "match_direct": want.MatchDirect, "match_reverse": want.MatchReverse,
		"description": want.Description, "deletable": 1,
	}
	write := func(id int) func(context.Context, pgx.Tx) error {
		return func(ctx context.Context, tx pgx.Tx) (err error) {
			if t.linkByID {
				r["directory_id"] = *sourceID
			} else {
				r["uri"] = uri
			}
			if id == 0 {
				if id, err = r.insert(ctx, tx, "ctidirectories"); err != nil {
					return err
				}
			} else if err := r.update(ctx, tx, "ctidirectories", id); err != nil {
				return err
			}
			return writeFields(ctx, tx, id, want.Fields)
		}
	}

	found := t.definitionsNamed(name)
	if len(found) == 0 {
		p.add(fmt.Sprintf("the definition %s of %s is missing", name, s.peer.Host), write(0))
		return
	}
	for _, extra := range found[1:] {
		p.add(fmt.Sprintf("the definition %s is there twice", name), deleteDefinition(extra.ID))
	}
	have := found[0]
	same := have.MatchDirect == want.MatchDirect && have.MatchReverse == want.MatchReverse &&
		have.Description == want.Description && maps.Equal(have.Fields, want.Fields)
	if t.linkByID {
		same = same && *sourceID != 0 && have.SourceID == *sourceID
	} else {
		same = same && have.URI == uri
	}
	if !same {
		p.add(fmt.Sprintf("the definition %s (%s) differs", name, s.peer.Host), write(have.ID))
	}
}

// matchOf returns the columns that the local definition is searched by. Text
// that is no JSON array would break every source.
func matchOf(local definition) string {
	var columns []string
	if json.Unmarshal([]byte(local.MatchDirect), &columns) != nil || len(columns) == 0 {
		return defaultMatch
	}
	return local.MatchDirect
}

func writeFields(ctx context.Context, tx pgx.Tx, id int, fields map[string]string) error {
	if _, err := tx.Exec(ctx, "DELETE FROM ctidirectoryfields WHERE dir_id = $1", id); err != nil {
		return fmt.Errorf("directory: fields of definition %d: %w", id, err)
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if _, err := tx.Exec(ctx, "INSERT INTO ctidirectoryfields (dir_id, fieldname, value) VALUES ($1, $2, $3)", id, name, fields[name]); err != nil {
			return fmt.Errorf("directory: field %s of definition %d: %w", name, id, err)
		}
	}
	return nil
}

// contexts returns the names of the contexts that should list the source.
func (s *PeerSource) contexts(t *tables, local definition) ([]string, error) {
	if s.options.Suspended {
		return nil, nil
	}
	if len(s.options.Contexts) > 0 {
		for _, name := range s.options.Contexts {
			if !slices.ContainsFunc(t.contexts, func(c contextRow) bool { return c.Name == name }) {
				return nil, fmt.Errorf("directory: there is no context %q; there are %s", name, t.contextNames())
			}
		}
		return s.options.Contexts, nil
	}
	names := slices.DeleteFunc(t.listing(local.Name), func(name string) bool { return name == switchboard })
	if len(names) == 0 {
		return nil, fmt.Errorf("directory: no context lists %s, this server's own users, so there is none to add others to: set directory.contexts to some of %s", local.Name, t.contextNames())
	}
	return names, nil
}

// planContexts plans the entry in these contexts, and in no other.
func planContexts(p *plan, t *tables, name string, contexts []string) {
	for _, c := range t.contexts {
		want := withoutEntry(c.Directories, name)
		says := fmt.Sprintf("the context %s lists %s", c.Name, name)
		if slices.Contains(contexts, c.Name) {
			want = withEntry(c.Directories, name)
			says = fmt.Sprintf("the context %s does not list %s", c.Name, name)
		}
		if want == c.Directories {
			continue
		}
		p.add(says, func(ctx context.Context, tx pgx.Tx) error {
			return record{"directories": want}.update(ctx, tx, "cticontexts", c.ID)
		})
	}
}

// removal plans that nothing of a name of ours is left.
func removal(t *tables, name string) plan {
	var p plan
	planContexts(&p, t, name, nil)
	for _, d := range t.definitionsNamed(name) {
		p.add(fmt.Sprintf("the definition %s is there", name), deleteDefinition(d.ID))
	}
	for _, s := range t.sourcesNamed(name) {
		p.add(fmt.Sprintf("the source %s is there", name), deleteByID("directories", s.ID))
	}
	return p
}

func deleteByID(table string, id int) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE id = $1", id); err != nil {
			return fmt.Errorf("directory: remove id %d from %s: %w", id, table, discreet(err))
		}
		return nil
	}
}

// deleteDefinition removes the fields too: only late schemas do it themselves.
func deleteDefinition(id int) func(context.Context, pgx.Tx) error {
	return func(ctx context.Context, tx pgx.Tx) error {
		if err := writeFields(ctx, tx, id, nil); err != nil {
			return err
		}
		return deleteByID("ctidirectories", id)(ctx, tx)
	}
}

// SourceGone is what NoSource returns.
type SourceGone struct {
	conn *pgx.Conn
	name string
}

// NoSource is the absence of everything that Source made for a peer, by the
// name that it has (see Name). A name that is not ours is refused.
func NoSource(conn *pgx.Conn, name string) *SourceGone { return &SourceGone{conn, name} }

func (s *SourceGone) plan(t *tables) (plan, error) {
	if !Ours(s.name) {
		return plan{}, fmt.Errorf("directory: the source %q was not made by us and stays", s.name)
	}
	return removal(t, s.name), nil
}

// Diff says what is left of it.
func (s *SourceGone) Diff(ctx context.Context) ([]string, error) {
	t, err := read(ctx, s.conn)
	if err != nil {
		return nil, err
	}
	p, err := s.plan(t)
	return p.says, err
}

// Apply removes it, in one transaction.
func (s *SourceGone) Apply(ctx context.Context) error { return change(ctx, s.conn, s.plan) }

// EverythingGone is what Nothing returns.
type EverythingGone struct{ conn *pgx.Conn }

// Nothing is the absence of all rows that this package makes, for every peer
// and every generation of the secret.
func Nothing(conn *pgx.Conn) *EverythingGone { return &EverythingGone{conn} }

func (e *EverythingGone) plan(t *tables) (plan, error) {
	var all plan
	for _, name := range t.ours() {
		p := removal(t, name)
		all.says = append(all.says, p.says...)
		all.do = append(all.do, p.do...)
	}
	return all, nil
}

// Diff says what is left.
func (e *EverythingGone) Diff(ctx context.Context) ([]string, error) {
	t, err := read(ctx, e.conn)
	if err != nil {
		return nil, err
	}
	p, err := e.plan(t)
	if err != nil {
		return nil, err
	}
	accounts, err := ourAccounts(ctx, e.conn)
	for _, a := range accounts {
		p.says = append(p.says, fmt.Sprintf("the web-service account %s is there", a.Name))
	}
	return p.says, err
}

// Apply removes it.
func (e *EverythingGone) Apply(ctx context.Context) error {
	return postgres.Locked(ctx, e.conn, directoryTables+", accesswebservice", func(tx pgx.Tx) error {
		t, err := read(ctx, tx)
		if err != nil {
			return err
		}
		p, err := e.plan(t)
		if err != nil {
			return err
		}
		accounts, err := ourAccounts(ctx, tx)
		if err != nil {
			return err
		}
		for _, a := range accounts {
			p.add("", deleteByID("accesswebservice", a.ID))
		}
		for _, do := range p.do {
			if err := do(ctx, tx); err != nil {
				return err
			}
		}
		return nil
	})
}

type named struct {
	ID   int
	Name string
}

func ourAccounts(ctx context.Context, q postgres.Querier) ([]named, error) {
	found, err := rowsOf[named](ctx, q, "SELECT id, name FROM accesswebservice ORDER BY id")
	if err != nil {
		return nil, fmt.Errorf("directory: read accesswebservice: %w", err)
	}
	return slices.DeleteFunc(found, func(a named) bool { return !ourAccount.MatchString(a.Name) }), nil
}

// Found is a source of another XiVO's users, as the database has it.
type Found struct {
	Name     string   // of the definition; of the source where it has none
	Address  string   // the host of its uri
	Ours     bool     // made by us; else by an operator
	Contexts []string // that list it; none: nobody finds its users
	// Digest changes whenever xivo-dird would read something else, passwords
	// included, without telling them.
	Digest string
}

// Sources returns all sources of other XiVOs' users: ours, also what is only
// half there, and those that an operator made.
func Sources(ctx context.Context, conn *pgx.Conn) ([]Found, error) {
	t, err := read(ctx, conn)
	if err != nil {
		return nil, err
	}
	var out []Found
	seen := map[string]bool{}
	for _, s := range t.sources {
		if s.Kind != "xivo" || local(s.URI) {
			continue
		}
		var definitions []definition
		for _, d := range t.definitions {
			// One uri links ours to an operator's source, too.
			if t.linked(d, s) && Ours(d.Name) == Ours(s.Name) {
				definitions = append(definitions, d)
			}
		}
		f := t.found(s.Name, s, definitions)
		if len(definitions) > 0 && !f.Ours {
			f = t.found(definitions[0].Name, s, definitions)
		}
		seen[f.Name] = true
		out = append(out, f)
	}
	for _, name := range t.ours() {
		if !seen[name] {
			out = append(out, t.found(name, source{}, t.definitionsNamed(name)))
		}
	}
	return out, nil
}

func (t *tables) found(name string, s source, definitions []definition) Found {
	f := Found{Name: name, Ours: Ours(name), Contexts: t.listing(name)}
	f.Address, _ = hostOf(s.URI)
	raw, err := json.Marshal([]any{s, definitions, f.Contexts})
	if err != nil {
		panic(err) // plain structs of ours
	}
	sum := sha256.Sum256(raw)
	f.Digest = hex.EncodeToString(sum[:8])
	return f
}

func (t *tables) sourcesNamed(name string) []source {
	return slices.DeleteFunc(slices.Clone(t.sources), func(s source) bool { return s.Name != name })
}

func (t *tables) definitionsNamed(name string) []definition {
	return slices.DeleteFunc(slices.Clone(t.definitions), func(d definition) bool { return d.Name != name })
}

// ours returns our names wherever one of them stands.
func (t *tables) ours() []string {
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
	return slices.DeleteFunc(slices.Compact(names), func(n string) bool { return !Ours(n) })
}

func (t *tables) contextNames() string {
	var names []string
	for _, c := range t.contexts {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}
