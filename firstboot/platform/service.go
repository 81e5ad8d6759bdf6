package platform

import (
	"cmp"
	"maps"
	"slices"
)

// Role is what a service is for, under the first name that it had. Which name it
// has in a version, Platform.Service tells.
type Role string

// The services of a XiVO server that are started or stopped, or that must not run
// before the server has its identity. XiVO's daemons are renamed one by one from
// Wazo 17.14 on. A role says nothing of whether a version has the service: ctid went
// in 2019, the last five came between 16.03 and 17.17.
const (
	Consul Role = "consul"
	Broker Role = "rabbitmq-server"
	Monit  Role = "monit" // restarts what it finds stopped

	Asterisk Role = "asterisk"
	Agentd   Role = "xivo-agentd"      // agents of queues
	Agid     Role = "xivo-agid"        // answers Asterisk's dialplan
	Amid     Role = "xivo-amid"        // Asterisk's events to the bus
	Auth     Role = "xivo-auth"        // tokens
	CallLog  Role = "xivo-call-logs"   // the history of calls
	Confd    Role = "xivo-confd"       // the API of the configuration, and the users of a node
	Confgend Role = "xivo-confgend"    // configuration files of the others, from the database
	Ctid     Role = "xivo-ctid"        // the desktop clients and the statuses that they see
	CtidNG   Role = "xivo-ctid-ng"     // the API of calls and presences
	Dird     Role = "xivo-dird"        // searches contacts
	Phoned   Role = "xivo-dird-phoned" // the same for phones
	Dxtora   Role = "xivo-dxtora"      // DHCP's news of phones to provd
	Provd    Role = "xivo-provd"       // configures phones
	Sysconfd Role = "xivo-sysconfd"    // changes the system for the web interface

	Websocketd Role = "xivo-websocketd" // events to web clients
	AdminUI    Role = "wazo-admin-ui"
	Plugind    Role = "wazo-plugind"
	Webhookd   Role = "wazo-webhookd"
	MongooseIM Role = "mongooseim" // chat
)

// daemons are the roles of XiVO's own daemons: all that carry or tell the identity
// of the server, and wait for it.
var daemons = []Role{
	Asterisk, Agentd, Agid, Amid, Auth, CallLog, Confd, Confgend, Ctid, CtidNG, Dird, Phoned, Dxtora, Provd, Sysconfd,
	Websocketd, AdminUI, Plugind, Webhookd, MongooseIM,
}

// Service is the name of a service in this version: for the init system, and where
// the daemon registers in Consul, there.
func (p *Platform) Service(r Role) string { return cmp.Or(p.Traits.Services[r], string(r)) }

// Daemons returns the names that XiVO's daemons have in any version, sorted. The
// brokers and monit are none of them.
func Daemons() []string {
	names := map[string]bool{}
	var t Traits
	for _, c := range changes {
		c.apply(&t)
		for _, r := range daemons {
			names[(&Platform{Traits: t}).Service(r)] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// renamed is a change of the table: the services that have these names from then
// on.
func renamed(names map[Role]string) func(*Traits) {
	return func(t *Traits) {
		if t.Services == nil {
			t.Services = map[Role]string{}
		}
		maps.Copy(t.Services, names)
	}
}
