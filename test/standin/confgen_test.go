package standin

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestURIIsTakenApartAsConfgendDoes(t *testing.T) {
	for uri, want := range map[string]confdConfig{
		"https://10.0.0.1:9486": {HTTPS: true, Host: "10.0.0.1", Port: 9486},
		"https://10.0.0.1":      {HTTPS: true, Host: "10.0.0.1"},
		"http://localhost:9487": {Host: "localhost", Port: 9487},
		"10.0.0.1:9486":         {},
		"https://10.0.0.1/path": {HTTPS: true, Host: "10.0.0.1/path"},
	} {
		want.Timeout, want.Version = 4, "1.1"
		got, err := parseConfd(uri)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", uri, err, diff)
		}
	}
	for _, uri := range []string{"https://10.0.0.1:9486/", "https://10.0.0.1:9486/1.1", "https://[::1]:9486", "https://10.0.0.1:port"} {
		if got, err := parseConfd(uri); err == nil {
			t.Errorf("%s: %+v, want the error of int()", uri, got)
		}
	}
}

// Statements that add a XiVO as people do, before 16.13.
func addPeer(name, uri, fields string) []string {
	return []string{
		`INSERT INTO directories (uri, dirtype, name, description, xivo_username, xivo_password)
			VALUES ('` + uri + `', 'xivo', '` + name + `', '', 'mesh', 's3cret')`,
		`INSERT INTO ctidirectories (name, uri, match_direct, match_reverse)
			VALUES ('` + name + `', '` + uri + `', '` + fields + `', '')`,
		`INSERT INTO ctidirectoryfields (dir_id, fieldname, value) SELECT id, 'name', '{firstname} {lastname}' FROM ctidirectories WHERE name = '` + name + `'`,
	}
}

const names = `["firstname","lastname"]`

func TestConfgen(t *testing.T) {
	fresh := servers(t, "16.03")
	confgen := func(t *testing.T, statements ...string) (*Confgen, *logged) {
		dsn := fresh(t)
		execute(t, dsn, statements...)
		log, said := newLog(t)
		return &Confgen{Database: dsn, Cache: t.TempDir(), Log: log}, said
	}
	sources := func(c dirdConfig) []string { return slices.Sorted(maps.Keys(c.Sources)) }

	t.Run("a definition finds its directory by its uri", func(t *testing.T) {
		g, _ := confgen(t, addPeer("peer", "https://10.0.0.2:9486", names)...)
		config := g.Dird(t.Context())
		want := source{
			Type: "xivo", Name: "peer", SearchedColumns: []string{"firstname", "lastname"},
			FirstMatched:  []string{},
			FormatColumns: map[string]string{"name": "{firstname} {lastname}"}, UniqueColumn: "id",
			Confd: &confdConfig{HTTPS: true, Host: "10.0.0.2", Port: 9486, Timeout: 4, Version: "1.1", Verify: false, Username: "mesh", Password: "s3cret"},
		}
		if diff := cmp.Diff(want, config.Sources["peer"]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"internal", "peer", "xivodir"}, sources(config)); diff != "" {
			t.Error(diff)
		}
		lookup := config.Services.Lookup["default"]
		if diff := cmp.Diff(lookupService{Sources: []string{"xivodir", "internal", "personal"}, Timeout: 2.9}, lookup); diff != "" {
			t.Error(diff)
		}
		if got := config.Views.ProfileToDisplay["default"]; got != "Display" {
			t.Errorf("display of profile default: %q", got)
		}
	})

	t.Run("uris that differ by a letter are no pair", func(t *testing.T) {
		g, _ := confgen(t, append(addPeer("peer", "https://10.0.0.2:9486", names),
			"UPDATE ctidirectories SET uri = 'https://10.0.0.2:9486/' WHERE name = 'peer'")...)
		if diff := cmp.Diff([]string{"internal", "xivodir"}, sources(g.Dird(t.Context()))); diff != "" {
			t.Error(diff)
		}
	})

	for name, statements := range map[string][]string{
		"one uri with a slash":                 addPeer("bad", "https://10.0.0.2:9486/", names),
		"one IPv6 address":                     addPeer("bad", "https://[::1]:9486", names),
		"one match_direct that is no JSON":     addPeer("bad", "https://10.0.0.2:9486", "firstname,lastname"),
		"a name with an accent, separated":     append(addPeer("société", "https://10.0.0.2:9486", names), "UPDATE ctimain SET context_separation = 1"),
		"a match_reverse that is not an array": append(addPeer("bad", "https://10.0.0.2:9486", names), "UPDATE ctidirectories SET match_reverse = 'exten'"),
	} {
		t.Run(name+" loses all sources, without an error", func(t *testing.T) {
			g, said := confgen(t, statements...)
			config := g.Dird(t.Context())
			if len(config.Sources) != 0 {
				t.Errorf("sources %v, want none", sources(config))
			}
			if len(config.Services.Lookup) == 0 {
				t.Error("the other documents are not touched by it")
			}
			if !strings.Contains(said.String(), "document=sources") {
				t.Errorf("the log says nothing of it: %s", said)
			}
		})
	}

	t.Run("the cached sources are served while one is bad", func(t *testing.T) {
		g, _ := confgen(t, addPeer("good", "https://10.0.0.2:9486", names)...)
		g.Dird(t.Context())
		execute(t, g.Database, addPeer("bad", "https://10.0.0.3:9486/", names)...)
		if diff := cmp.Diff([]string{"good", "internal", "xivodir"}, sources(g.Dird(t.Context()))); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("a name with an accent is fine when contexts are not separated", func(t *testing.T) {
		g, _ := confgen(t, addPeer("société", "https://10.0.0.2:9486", names)...)
		if _, ok := g.Dird(t.Context()).Sources["société"]; !ok {
			t.Error("not there")
		}
	})

	t.Run("a user name without a password is none", func(t *testing.T) {
		g, _ := confgen(t, append(addPeer("peer", "https://10.0.0.2:9486", names), "UPDATE directories SET xivo_password = ''")...)
		if c := g.Dird(t.Context()).Sources["peer"].Confd; c.Username != "" {
			t.Errorf("got %+v", c)
		}
	})

	t.Run("verification is off, the system's, or a file", func(t *testing.T) {
		g, _ := confgen(t, slices.Concat(addPeer("a", "https://10.0.0.2:9486", names), addPeer("b", "https://10.0.0.3:9486", names), []string{
			"UPDATE directories SET xivo_verify_certificate = true",
			"UPDATE directories SET xivo_custom_ca_path = '/ca.pem' WHERE name = 'b'"})...)
		config := g.Dird(t.Context())
		if a, b := config.Sources["a"].Confd.Verify, config.Sources["b"].Confd.Verify; a != true || b != "/ca.pem" {
			t.Errorf("got %v and %v", a, b)
		}
	})

	t.Run("of two directories with one uri the later one's password is used", func(t *testing.T) {
		g, _ := confgen(t, append(addPeer("peer", "https://10.0.0.2:9486", names),
			`INSERT INTO directories (uri, dirtype, name, description, xivo_username, xivo_password)
				VALUES ('https://10.0.0.2:9486', 'xivo', 'again', '', 'mesh', 'newer')`)...)
		if got := g.Dird(t.Context()).Sources["peer"].Confd.Password; got != "newer" {
			t.Errorf("password %q", got)
		}
	})

	t.Run("of two definitions with one name the later one wins", func(t *testing.T) {
		g, _ := confgen(t, slices.Concat(addPeer("peer", "https://10.0.0.2:9486", names), addPeer("later", "https://10.0.0.3:9486", names),
			[]string{"UPDATE ctidirectories SET name = 'peer' WHERE name = 'later'"})...)
		if got := g.Dird(t.Context()).Sources["peer"].Confd.Host; got != "10.0.0.3" {
			t.Errorf("host %q", got)
		}
	})

	t.Run("directories of a context are split at commas and not trimmed", func(t *testing.T) {
		g, _ := confgen(t, "UPDATE cticontexts SET directories = 'internal, peer' WHERE name = 'default'",
			"UPDATE cticontexts SET directories = '' WHERE name = '__switchboard_directory'")
		services := g.Dird(t.Context()).Services.Lookup
		if diff := cmp.Diff([]string{"internal", " peer", "personal"}, services["default"].Sources); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"", "personal"}, services["__switchboard_directory"].Sources); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("a context whose display does not exist is no profile", func(t *testing.T) {
		g, _ := confgen(t, "INSERT INTO cticontexts (name, directories, display) VALUES ('sales', 'internal', 'Nowhere')")
		config := g.Dird(t.Context())
		if _, ok := config.Services.Lookup["sales"]; ok || config.Views.ProfileToDisplay["sales"] != "" {
			t.Error("it is one")
		}
	})

	t.Run("context separation gives each profile a source of its own", func(t *testing.T) {
		g, _ := confgen(t, append(addPeer("peer", "https://10.0.0.2:9486", names), "UPDATE ctimain SET context_separation = 1",
			"UPDATE cticontexts SET directories = 'xivodir,internal,peer' WHERE name = 'default'")...)
		config := g.Dird(t.Context())
		want := []string{"internal___switchboard_directory", "internal_default", "peer___switchboard_directory", "peer_default", "xivodir"}
		if diff := cmp.Diff(want, sources(config)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]string{"context": "default"}, config.Sources["peer_default"].ExtraSearchParams); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"xivodir", "internal_default", "peer_default", "personal"}, config.Services.Lookup["default"].Sources); diff != "" {
			t.Error(diff)
		}
	})

	t.Run("without an answer from the database there is nothing", func(t *testing.T) {
		log, _ := newLog(t)
		config := (&Confgen{Database: "postgresql://127.0.0.1:1/none", Cache: t.TempDir(), Log: log}).Dird(t.Context())
		if len(config.Sources) != 0 {
			t.Error("there is")
		}
	})
}

func TestConfgenOfOtherEras(t *testing.T) {
	for _, c := range []struct {
		era      string
		sources  []string
		services bool
	}{
		{"15.20", []string{"internal", "xivodir"}, true},
		{"16.13", nil, true},                   // shipped with definitions that belong to no directory
		{"16.16", []string{"internal"}, false}, // shipped without a row in ctireversedirectories
	} {
		t.Run(c.era, func(t *testing.T) {
			log, _ := newLog(t)
			g := &Confgen{Database: servers(t, c.era)(t), Cache: t.TempDir(), Log: log}
			config := g.Dird(t.Context())
			if diff := cmp.Diff(c.sources, slices.Sorted(maps.Keys(config.Sources))); diff != "" {
				t.Error(diff)
			}
			if got := len(config.Services.Lookup) > 0; got != c.services {
				t.Errorf("lookup services: %v", config.Services.Lookup)
			}
		})
	}
}
