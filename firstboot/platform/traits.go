package platform

import "fmt"

// Traits is everything in which XiVO versions differ for us. No other place
// compares versions. What a server can be asked is not here: columns are looked
// up where they are written, and the init system is the one that runs (sysvinit
// up to 15.19, systemd after).
type Traits struct {
	// Columns says of a column, as "table.column", whether the database of this
	// version has it. It tells a database of another version; which columns to
	// write is looked up. Empty where that is not known.
	Columns map[string]bool
	// UUIDInEnvironment: daemons take the UUID from XIVO_UUID, which is kept in
	// /etc/profile.d/xivo_uuid.sh, systemd's system.conf, /etc/default/xivo and
	// the service manager.
	UUIDInEnvironment bool
	// UUIDFromEnvironment: the database's UUID is a copy of XIVO_UUID; before,
	// it is the other way round.
	UUIDFromEnvironment bool
	// CtidCheckURL: xivo-ctid registers an HTTP check on check_url; later ones
	// a TTL check, and ignore the key.
	CtidCheckURL bool
	// CtidAsksPeers: xivo-ctid asks the xivo-ctid of a peer for the statuses of
	// its users, without a password; later ones ask their own xivo-ctid-ng.
	CtidAsksPeers bool
	// PresenceCredentials: xivo-ctid-ng asks the xivo-auth and the xivo-ctid-ng
	// of a peer, which it finds in Consul, with credentials of its own for it.
	PresenceCredentials bool
	// KeyFiles are the services with a random key in a file of its own. Empty:
	// the keys are in accesswebservice, and all files follow it.
	KeyFiles []string
	// WizardFlagInDatabase: general.configured tells that the wizard was passed;
	// before, a marker file.
	WizardFlagInDatabase bool
	// ConsulPerformance: Consul knows the key `performance`; before, an unknown
	// key is fatal.
	ConsulPerformance bool
	// AnonymousServices: Consul's unit lets everybody read where XiVO's services are.
	AnonymousServices bool
	// Services are the names of the services that have another one than at first;
	// Platform.Service looks into it.
	Services map[Role]string
	// ServiceCommand starts and stops XiVO's daemons.
	ServiceCommand string
	// Joinable: contacts and statuses can be shared as the procedure describes.
	Joinable bool
}

// change is one row of the table: from this version on, the trait differs.
type change struct {
	from  string
	what  string
	apply func(*Traits)
}

// changes is the one table of version differences, oldest first. Evidence for
// each boundary is in docs/xivo/versions.md, The table of the code; for the names of
// services, in the upgrade notes of Wazo's documentation. A year of four digits
// is that of a release of xivo.solutions.
var changes = []change{
	{"15.19", "the first version that the procedure covers", func(t *Traits) {
		*t = Traits{
			Columns: map[string]bool{
				"accesswebservice.obj":        true,
				"accesswebservice.acl":        false,
				"ctidirectories.uri":          true,
				"ctidirectories.directory_id": false,
				"infos.wazo_version":          false,
			},
			CtidCheckURL:   true,
			CtidAsksPeers:  true,
			KeyFiles:       []string{"xivo-agentd-cli", "xivo-agid", "xivo-ctid", "xivo-dird-phoned"},
			ServiceCommand: "xivo-service",
			Joinable:       true,
		}
	}},
	{"16.01", "TTL checks; service accounts with rights in the database", func(t *Traits) {
		t.CtidCheckURL = false
		t.KeyFiles = nil
		t.Columns["accesswebservice.obj"], t.Columns["accesswebservice.acl"] = false, true
	}},
	{"16.02", "XIVO_UUID in the environment of every daemon", func(t *Traits) { t.UUIDInEnvironment = true }},
	{"16.06", "the wizard's flag moves to the database", func(t *Traits) { t.WizardFlagInDatabase = true }},
	{"16.13", "definitions refer to their directory", func(t *Traits) {
		t.Columns["ctidirectories.uri"], t.Columns["ctidirectories.directory_id"] = false, true
	}},
	{"16.15", "xivo-ctid-ng asks its peers; Consul's unit opens the catalogue", func(t *Traits) {
		t.PresenceCredentials, t.AnonymousServices = true, true
	}},
	{"16.16", "Consul 0.7 knows `performance`", func(t *Traits) { t.ConsulPerformance = true }},
	{"17.01", "the database tells the version", func(t *Traits) { t.Columns["infos.wazo_version"] = true }},
	{"17.03", "the UUID is made at installation, and copied into the database", func(t *Traits) { t.UUIDFromEnvironment = true }},
	{"17.14", "xivo-auth is renamed", renamed(map[Role]string{Auth: "wazo-auth"})},
	{"17.15", "the call logs are renamed", renamed(map[Role]string{CallLog: "wazo-call-logd"})},
	{"17.16", "xivo-ctid asks its own xivo-ctid-ng", func(t *Traits) { t.CtidAsksPeers = false }},
	{"17.17", "xivo-service becomes an alias", func(t *Traits) { t.ServiceCommand = "wazo-service" }},
	{"18.04", "past what the procedure was written for", func(t *Traits) {
		// Which tables there are changes with nearly every release from here on.
		t.Joinable, t.Columns = false, nil
	}},
	{"18.05", "xivo-dird is renamed", renamed(map[Role]string{Dird: "wazo-dird"})},
	{"19.07", "xivo-ctid-ng is renamed", renamed(map[Role]string{CtidNG: "wazo-calld"})},
	{"19.09", "xivo-agentd and xivo-confd are renamed", renamed(map[Role]string{Agentd: "wazo-agentd", Confd: "wazo-confd"})},
	{"19.12", "xivo-agid and xivo-provd are renamed", renamed(map[Role]string{Agid: "wazo-agid", Provd: "wazo-provd"})},
	{"19.13", "xivo-amid is renamed", renamed(map[Role]string{Amid: "wazo-amid"})},
	{"19.14", "xivo-confgend is renamed", renamed(map[Role]string{Confgend: "wazo-confgend"})},
	{"2017.01", "xivo.solutions keeps the names that XiVO had", func(t *Traits) {
		t.Services, t.ServiceCommand = nil, "xivo-service"
	}},
}

func traitsOf(v Version) (Traits, error) {
	var t Traits
	first := mustVersion(changes[0].from)
	if v.Compare(first) < 0 {
		return t, fmt.Errorf("XiVO %s is older than %s, for which the procedure was written", v, first)
	}
	for _, c := range changes {
		if v.Compare(mustVersion(c.from)) >= 0 {
			c.apply(&t)
		}
	}
	return t, nil
}

func mustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}
