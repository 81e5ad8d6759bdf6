package directory

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// switchboard is the context of the switchboard's own list: it shows what its
// operator chose, never what we add.
const switchboard = "__switchboard_directory"

// contexts returns the names of the contexts that should list the source.
func (s peerSource) contexts(t *tables, local definition) ([]string, error) {
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

// compareContexts compares the entries of a name: it should be in these contexts,
// and in no other.
func compareContexts(t *tables, name string, contexts []string) []change {
	var changes []change
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
		changes = append(changes, change{says, func(ctx context.Context, tx pgx.Tx) error {
			return record{"directories": want}.update(ctx, tx, "cticontexts", c.ID)
		}})
	}
	return changes
}

func (t *tables) contextNames() string {
	var names []string
	for _, c := range t.contexts {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
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
