// Package schema holds the part of XiVO's database that the mesh touches, as
// each era of XiVO has it, to make a database that the tests can break.
package schema

import (
	"bytes"
	_ "embed"
	"fmt"
	"text/template"
)

//go:embed schema.sql.tmpl
var text string

var schema = template.Must(template.New("schema").Parse(text))

// Eras are the releases whose schemas differ from the one before, oldest first.
var Eras = []string{"15.20", "16.03", "16.12", "16.13", "16.16", "17.17"}

// era says what a release's tables have.
type era struct {
	Era               string
	Obj               bool     // accesswebservice.obj; later acl
	Accounts          []string // rows of accesswebservice
	AccountUUID       bool     // accesswebservice.uuid
	Email             bool     // confd's view has the e-mail address
	ContextSeparation bool     // ctimain.context_separation
	DirectoryID       bool     // ctidirectories.directory_id, no uri
	FieldsKey         bool     // ctidirectoryfields.dir_id is a foreign key
	EmptySwitchboard  bool     // no phonebook: '__switchboard_directory' has no source
	WazoDirectory     bool     // the local source is called wazo, and is the only one
	General           bool     // general.configured
	WazoVersion       bool     // infos.wazo_version
}

// The services that have an account in every database from 16.01 on.
var accounts = []string{"xivo-agentd-cli", "xivo-agid", "xivo-ctid", "xivo-ctid-ng", "xivo-dird-phoned"}

var eras = map[string]era{
	"15.20": {Obj: true, ContextSeparation: true},
	"16.03": {Accounts: accounts, Email: true, ContextSeparation: true},
	"16.12": {Accounts: accounts, Email: true, ContextSeparation: true, General: true},
	"16.13": {Accounts: append(accounts[:5:5], "xivo-wizard"), Email: true, ContextSeparation: true, General: true, DirectoryID: true},
	"16.16": {Accounts: append(accounts[:5:5], "xivo-wizard"), Email: true, ContextSeparation: true, General: true, DirectoryID: true, FieldsKey: true, EmptySwitchboard: true, WazoDirectory: true},
	"17.17": {Accounts: append(accounts[:5:5], "xivo-wizard"), Email: true, ContextSeparation: true, General: true, DirectoryID: true, FieldsKey: true, EmptySwitchboard: true, WazoDirectory: true, AccountUUID: true, WazoVersion: true},
}

// SQL returns the statements that make the tables of an era, with the rows of
// a fresh installation, in an empty database. It panics for an era that is not
// among Eras.
func SQL(name string) string {
	e, ok := eras[name]
	if !ok {
		panic(fmt.Sprintf("schema: no era %q; there are %v", name, Eras))
	}
	e.Era = name
	var out bytes.Buffer
	if err := schema.Execute(&out, e); err != nil {
		panic(err)
	}
	return out.String()
}
