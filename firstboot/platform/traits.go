package platform

import "fmt"

// Traits is everything in which XiVO versions differ for us. No other place
// compares versions.
type Traits struct {
	// UUIDInEnvironment: daemons take the UUID from XIVO_UUID, which is kept in
	// /etc/profile.d/xivo_uuid.sh, systemd's system.conf, /etc/default/xivo and
	// the service manager.
	UUIDInEnvironment bool
	// CtidCheckURL: xivo-ctid registers an HTTP check on check_url; later ones
	// a TTL check, and ignore the key.
	CtidCheckURL bool
	// ServiceAccountsInDatabase: xivo-auth's key files follow accesswebservice.
	ServiceAccountsInDatabase bool
	// UserDataInKV: Consul's KV holds tokens and personal contacts.
	UserDataInKV bool
	// WizardFlagInDatabase: general.configured tells that the wizard was passed;
	// before, a marker file.
	WizardFlagInDatabase bool
	// ConsulPerformance: Consul knows the key `performance`; before, an unknown
	// key is fatal.
	ConsulPerformance bool
	// Joinable: contacts and presences can be shared as the seed describes.
	Joinable bool
}

// change is one row of the table: from this version on, the trait differs.
type change struct {
	from  string
	what  string
	apply func(*Traits)
}

// changes is the one table of version differences, oldest first. Evidence for
// each boundary is in the project's fact sheet, section 0.
var changes = []change{
	{"15.19", "the first version that the procedure covers; check_url; KV holds user data", func(t *Traits) {
		*t = Traits{CtidCheckURL: true, UserDataInKV: true, Joinable: true}
	}},
	{"16.01", "TTL checks; accesswebservice loses obj, gains acl", func(t *Traits) { t.CtidCheckURL = false; t.ServiceAccountsInDatabase = true }},
	{"16.02", "XIVO_UUID in the environment of every daemon", func(t *Traits) { t.UUIDInEnvironment = true }},
	{"16.06", "the wizard's flag moves to the database", func(t *Traits) { t.WizardFlagInDatabase = true }},
	{"16.07", "the KV holds no user data any more", func(t *Traits) { t.UserDataInKV = false }},
	{"16.16", "Consul 0.7 knows `performance`", func(t *Traits) { t.ConsulPerformance = true }},
	{"18.04", "past what the procedure was written for", func(t *Traits) { t.Joinable = false }},
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
