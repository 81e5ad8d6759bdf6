package directory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"

	"github.com/jackc/pgx/v5"
)

// Found is a source of another XiVO's users, as the database has it.
type Found struct {
	Name     string   // of the definition; of the source where it has none
	Address  string   // the host of its uri
	OfMesh   bool     // made by us; else by an operator
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
			if t.linked(d, s) && OfMesh(d.Name) == OfMesh(s.Name) {
				definitions = append(definitions, d)
			}
		}
		f := t.found(s.Name, s, definitions)
		if len(definitions) > 0 && !f.OfMesh {
			f = t.found(definitions[0].Name, s, definitions)
		}
		seen[f.Name] = true
		out = append(out, f)
	}
	for _, name := range t.meshNames() {
		if !seen[name] {
			out = append(out, t.found(name, source{}, t.definitionsNamed(name)))
		}
	}
	return out, nil
}

func (t *tables) found(name string, s source, definitions []definition) Found {
	f := Found{Name: name, OfMesh: OfMesh(name), Contexts: t.listing(name)}
	f.Address, _ = hostOf(s.URI)
	raw, err := json.Marshal([]any{s, definitions, f.Contexts})
	if err != nil {
		panic(err) // plain structs
	}
	sum := sha256.Sum256(raw)
	f.Digest = hex.EncodeToString(sum[:8])
	return f
}
