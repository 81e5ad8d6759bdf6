package directory

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

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

// Source is everything that makes a peer's users searchable: the source with
// the account, the definition with the fields of the local definition, and the
// entries in the contexts. Where an operator already made a source for the
// peer's address, that one stays as it is, and none is made. Diff does not show
// passwords.
func Source(conn *pgx.Conn, peer Peer, account string, password secret.Secret, options Options) engine.Resource {
	return inTables(conn, peerSource{peer, account, password, options}.compare)
}

// peerSource is the source of one peer, as it should be.
type peerSource struct {
	peer     Peer
	account  string
	password secret.Secret
	options  Options
}

func (s peerSource) compare(t *tables) ([]change, error) {
	name := Name(s.peer.UUID)
	uri, err := uriOf(s.peer.Address)
	if err != nil {
		return nil, err
	}
	if _, found := t.byHand(append([]string{s.peer.Address}, s.peer.Known...)...); found {
		return removal(t, name), nil
	}
	local, err := t.local()
	if err != nil {
		return nil, err
	}
	contexts, err := s.contexts(t, local)
	if err != nil {
		return nil, err
	}

	changes, id := s.compareSource(t, name, uri)
	changes = append(changes, s.compareDefinition(t, local, name, uri, id)...)
	changes = append(changes, compareContexts(t, name, contexts)...)
	// No column is unique. Last, as a definition may still have pointed to one.
	for i, extra := range t.sourcesNamed(name) {
		if i > 0 {
			changes = append(changes, change{fmt.Sprintf("the source %s is there twice", name), deleteByID("directories", extra.ID)})
		}
	}
	return changes, nil
}

// compareSource compares the row of directories. The pointer is to the id that
// it will have, known when the changes are made.
func (s peerSource) compareSource(t *tables, name, uri string) (changes []change, id *int) {
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
		says := fmt.Sprintf("the source %s of %s (%s) is missing", name, s.peer.Host, uri)
		return []change{{says, func(ctx context.Context, tx pgx.Tx) (err error) {
			*id, err = r.insert(ctx, tx, "directories")
			return err
		}}}, id
	}
	have := found[0]
	*id, want.ID = have.ID, have.ID
	if have == want {
		return nil, id
	}
	says := fmt.Sprintf("the source %s (%s) differs", name, s.peer.Host)
	if have.Password != want.Password {
		says += ", also its password"
	}
	return []change{{says, func(ctx context.Context, tx pgx.Tx) error {
		return r.update(ctx, tx, "directories", have.ID)
	}}}, id
}
