package directory

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// defaultMatch is what a source is searched by where the local definition does
// not say: without any column nothing is ever found.
const defaultMatch = `["firstname","lastname"]`

// compareDefinition compares the row of ctidirectories and its fields. The
// source's id is known when the changes are made.
func (s peerSource) compareDefinition(t *tables, local definition, name, uri string, sourceID *int) []change {
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
		return []change{{fmt.Sprintf("the definition %s of %s is missing", name, s.peer.Host), write(0)}}
	}
	var changes []change
	for _, extra := range found[1:] {
		changes = append(changes, change{fmt.Sprintf("the definition %s is there twice", name), deleteDefinition(extra.ID)})
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
		changes = append(changes, change{fmt.Sprintf("the definition %s (%s) differs", name, s.peer.Host), write(have.ID)})
	}
	return changes
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
