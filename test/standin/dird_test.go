package standin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// confdDouble is some XiVO's xivo-confd, with one user.
type confdDouble struct {
	*httptest.Server
	mu    sync.Mutex
	uuid  string
	asked map[string]int // by path
	query url.Values     // of the last question for users
	stuck chan struct{}  // until it is closed nothing is answered; nil: everything is
}

const alice = `{"total":1,"items":[{"id":7,"uuid":"11111111-0000-4000-8000-000000000001","line_id":21,"agent_id":null,"firstname":"Alice",
	"lastname":"Martin","exten":"1001","mobile_phone_number":null,"voicemail_number":null,"userfield":"","description":"","context":"default","email":"alice@a.example"}]}`

func newConfdDouble(t *testing.T, uuid string) *confdDouble {
	d := &confdDouble{uuid: uuid, asked: map[string]int{}}
	guard := newDigestGuard("double", func(login string) (string, bool) { return "s3cret", login == "mesh" })
	d.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if d.stuck != nil {
			<-d.stuck
		}
		if !guard.allows(r) {
			guard.challenge(w)
			return
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		d.asked[r.URL.Path]++
		switch r.URL.Path {
		case "/1.1/infos":
			answer(w, 200, map[string]string{"uuid": d.uuid})
		case "/1.1/users":
			d.query = r.URL.Query()
			fmt.Fprint(w, alice)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(d.Close)
	return d
}

func (d *confdDouble) source(name string) source {
	u, _ := url.Parse(d.URL)
	port, _ := strconv.Atoi(u.Port())
	return source{
		Type: "xivo", Name: name, SearchedColumns: []string{"firstname", "lastname"},
		FormatColumns: map[string]string{"name": "{firstname} {lastname}", "phone": "{exten}", "phone_mobile": "{mobile_phone_number}", "odd": "[{nowhere}]"},
		Confd:         &confdConfig{HTTPS: true, Host: u.Hostname(), Port: port, Timeout: 4, Version: "1.1", Verify: false, Username: "mesh", Password: "s3cret"},
	}
}

// dirdOf is a xivo-dird whose profile "default" has the sources, in turn.
func dirdOf(t *testing.T, timeout float64, sources ...source) *lookup {
	t.Helper()
	var config dirdConfig
	config.Sources = map[string]source{}
	var order []string
	for _, s := range sources {
		config.Sources[s.Name] = s
		order = append(order, s.Name)
	}
	config.Services.Lookup = map[string]lookupService{"default": {Sources: append(order, "personal"), Timeout: timeout}}
	unknown := "?"
	config.Views.Displays = map[string][]displayColumn{"Display": {
		{Title: "Name", Type: "name", Field: "name"}, {Title: "Number", Type: "number", Field: "phone"},
		{Title: "Mobile", Type: "callable", Field: "phone_mobile"}, {Title: "Personal", Field: "personal", Default: &unknown}}}
	config.Views.ProfileToDisplay = map[string]string{"default": "Display"}
	log, _ := newLog(t)
	return newLookup(config, log)
}

func found(t *testing.T, h http.Handler, term string) (found []contact) {
	t.Helper()
	status, body := get(t, from{"127.0.0.1", h}, "/0.1/directories/lookup/default?term="+term)
	if status != 200 {
		t.Fatalf("status %d: %v", status, body)
	}
	text, _ := json.Marshal(body["results"])
	if err := json.Unmarshal(text, &found); err != nil {
		t.Fatal(err)
	}
	return found
}

func TestLookupTellsWhomToSubscribeTo(t *testing.T) {
	line := 21
	want := []contact{{
		Source:       "peer",
		ColumnValues: map[string]string{"name": "Alice Martin", "phone": "1001", "phone_mobile": "", "personal": "?"},
		Relations:    relations{XivoID: uuidA, UserID: 7, UserUUID: "11111111-0000-4000-8000-000000000001", EndpointID: &line, SourceEntryID: "7"},
	}}
	d := newConfdDouble(t, uuidA)
	got := found(t, dirdOf(t, 2.9, d.source("peer")), "mart")
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(contact{})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(url.Values{"view": {"directory"}, "search": {"mart"}}, d.query); diff != "" {
		t.Error(diff)
	}
}

func TestLookupKeepsTheUUIDOfAXivoForLife(t *testing.T) {
	d := newConfdDouble(t, uuidA)
	h := dirdOf(t, 2.9, d.source("peer"))
	found(t, h, "alice")
	d.mu.Lock()
	d.uuid = uuidB
	d.mu.Unlock()
	if got := found(t, h, "alice"); got[0].Relations.XivoID != uuidA || d.asked["/1.1/infos"] != 1 {
		t.Errorf("xivo_id %s after %d questions, want the first one's", got[0].Relations.XivoID, d.asked["/1.1/infos"])
	}
}

func TestLookupFiltersByTheSearchedColumns(t *testing.T) {
	d := newConfdDouble(t, uuidA)
	s := d.source("peer")
	if got := found(t, dirdOf(t, 2.9, s), "1001"); len(got) != 0 {
		t.Errorf("found by a column that is not searched: %v", got)
	}
	s.SearchedColumns = append(s.SearchedColumns, "phone")
	if got := found(t, dirdOf(t, 2.9, s), "1001"); len(got) != 1 {
		t.Error("a formatted column can be searched")
	}
	s.SearchedColumns = nil
	if got := found(t, dirdOf(t, 2.9, s), "alice"); len(got) != 0 {
		t.Error("found something with no searched column")
	}
}

func TestLookupOfAContextAsksForIt(t *testing.T) {
	d := newConfdDouble(t, uuidA)
	s := d.source("peer_default")
	s.ExtraSearchParams = map[string]string{"context": "default"}
	found(t, dirdOf(t, 2.9, s), "alice")
	if d.query.Get("context") != "default" {
		t.Errorf("asked for %v", d.query)
	}
}

func TestLookupGoesOnWithoutSourcesThatFail(t *testing.T) {
	good := newConfdDouble(t, uuidA)
	refused := good.source("refused")
	refused.Confd = &confdConfig{HTTPS: true, Host: "127.0.0.1", Port: 1, Timeout: 4, Version: "1.1", Verify: false}
	wrong := good.source("wrong")
	c := *wrong.Confd
	c.Password = "other"
	wrong.Confd = &c
	unverified := good.source("unverified")
	v := *unverified.Confd
	v.Verify = true
	unverified.Confd = &v

	got := found(t, dirdOf(t, 2.9, refused, wrong, unverified, good.source("good")), "alice")
	if len(got) != 1 || got[0].Source != "good" {
		t.Errorf("got %v, want the good source's contact alone", got)
	}
}

func TestLookupWaitsNoLongerThanItsTimeout(t *testing.T) {
	dead := newConfdDouble(t, uuidB)
	dead.stuck = make(chan struct{})
	defer close(dead.stuck)
	good := newConfdDouble(t, uuidA)
	h := dirdOf(t, 0.3, dead.source("dead"), good.source("good"))

	start := time.Now()
	got := found(t, h, "alice")
	took := time.Since(start)
	if len(got) != 1 || got[0].Source != "good" {
		t.Errorf("got %v, want the living source's contact", got)
	}
	if took < 300*time.Millisecond || took > 2*time.Second {
		t.Errorf("took %v: a dead source costs the whole timeout, and no more", took)
	}
}

func TestTenDeadSourcesStarveALivingOne(t *testing.T) {
	dead := newConfdDouble(t, uuidB)
	dead.stuck = make(chan struct{})
	defer close(dead.stuck)
	var sources []source
	for i := range searchThreads {
		sources = append(sources, dead.source(fmt.Sprintf("dead%d", i)))
	}
	l := dirdOf(t, 0.3, sources...)
	found(t, l, "alice")

	// The threads are still held by the searches of the lookup before.
	l.services["default"] = lookupService{Sources: []string{"good"}, Timeout: 0.3}
	good := newConfdDouble(t, uuidA)
	s, err := newUserSource(good.source("good"), l.log)
	if err != nil {
		t.Fatal(err)
	}
	l.sources["good"] = s
	if got := l.search("default", "alice"); len(got) != 0 {
		t.Errorf("got %v, want nothing: no thread is free", got)
	}
}

func TestLookupOfAnUnknownProfile(t *testing.T) {
	h := dirdOf(t, 2.9)
	if status, _ := get(t, from{"127.0.0.1", h}, "/0.1/directories/lookup/sales?term=a"); status != 404 {
		t.Errorf("status %d, want 404", status)
	}
	if status, _ := get(t, from{"127.0.0.1", h}, "/0.1/directories/lookup/default"); status != 400 {
		t.Errorf("without a term: status %d, want 400", status)
	}
}

func TestDird(t *testing.T) {
	fresh := servers(t, "16.03")
	t.Run("reads the database at its start only", func(t *testing.T) {
		dsn := fresh(t)
		log, _ := newLog(t)
		peer := newConfdDouble(t, uuidA)
		d := &Dird{Confgen: Confgen{Database: dsn, Cache: t.TempDir(), Log: log}, Log: log}
		before := d.Handler(t.Context())
		execute(t, dsn, append(addPeer("peer", peer.URL, names),
			"UPDATE cticontexts SET directories = 'internal,peer' WHERE name = 'default'")...)
		if got := found(t, before, "alice"); len(got) != 0 {
			t.Errorf("got %v from rows that came after the start", got)
		}
		got := found(t, d.Handler(t.Context()), "alice")
		if len(got) != 1 || got[0].Relations.XivoID != uuidA || got[0].ColumnValues["name"] != "Alice Martin" {
			t.Errorf("after a restart: %v", got)
		}
	})
}
