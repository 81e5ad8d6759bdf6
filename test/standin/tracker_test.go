package standin

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func ctidAt(address, id string, tags ...string) catalogService {
	return catalogService{ServiceID: id, ServiceName: "xivo-ctid", ServiceAddress: address, ServicePort: 9495, ServiceTags: tags}
}

func newTrackerTest(t *testing.T) (*consulDouble, *tracker) {
	d := newConsulDouble(t)
	log, _ := newLog(t)
	return d, newTracker(d.client(t, xivo1603), uuidA, 9495, log)
}

func TestTrackerKnowsItselfWithoutAsking(t *testing.T) {
	d, tr := newTrackerTest(t)
	s, ok, err := tr.find(t.Context(), uuidA)
	if !ok || err != nil || s.Address != "localhost" || d.count("GET") != 0 {
		t.Errorf("%+v %v %v after %d questions", s, ok, err, d.count("GET"))
	}
}

func TestTrackerLooksInEveryDatacenterForTheTag(t *testing.T) {
	d, tr := newTrackerTest(t)
	d.add("dc-a", ctidAt("10.0.0.1", "id-a", uuidA, "xivo-ctid"))
	d.add("dc-b", ctidAt("10.0.0.2", "id-b", uuidB, "xivo-ctid"))
	for range 2 {
		s, ok, err := tr.find(t.Context(), uuidB)
		if !ok || err != nil || s.Address != "10.0.0.2" || s.Port != 9495 {
			t.Errorf("%+v %v %v", s, ok, err)
		}
	}
	for _, dc := range []string{"dc-a", "dc-b"} {
		if n := d.count("GET /v1/catalog/service/xivo-ctid?dc=" + dc); n != 1 {
			t.Errorf("%s was asked %d times, want once", dc, n)
		}
	}
}

func TestTrackerKeepsAnEmptyAnswer(t *testing.T) {
	d, tr := newTrackerTest(t)
	d.add("dc-a")
	if _, ok, err := tr.find(t.Context(), uuidB); ok || err != nil {
		t.Fatalf("found %v %v", ok, err)
	}
	// The peer joins; nobody asks again.
	d.add("dc-b", ctidAt("10.0.0.2", "id-b", uuidB, "xivo-ctid"))
	if _, ok, _ := tr.find(t.Context(), uuidB); ok {
		t.Error("the empty answer was forgotten")
	}
	tr.add(uuidB, remoteService{ID: "id-b", Address: "10.0.0.2", Port: 9495})
	if s, ok, _ := tr.find(t.Context(), uuidB); !ok || s.Address != "10.0.0.2" {
		t.Errorf("what the bus told is not known: %+v", s)
	}
}

func TestTrackerKeepsNoError(t *testing.T) {
	d, tr := newTrackerTest(t)
	d.add("dc-a")
	d.add("dc-b", ctidAt("10.0.0.2", "id-b", uuidB, "xivo-ctid"))
	d.forbidden["dc-a"] = true // its Consul is older, and refuses instead of hiding
	if _, ok, err := tr.find(t.Context(), uuidB); ok || err == nil {
		t.Errorf("found %v %v: one datacenter that refuses ends the search", ok, err)
	}
	d.mu.Lock()
	d.forbidden["dc-a"] = false
	d.mu.Unlock()
	if _, ok, err := tr.find(t.Context(), uuidB); !ok || err != nil {
		t.Errorf("not asked again after an error: %v", err)
	}
}

func TestTrackerTakesStaleEntriesForLivingOnes(t *testing.T) {
	d, tr := newTrackerTest(t)
	d.add("dc-b", ctidAt("10.0.0.9", "stale", uuidB, "xivo-ctid"), ctidAt("10.0.0.2", "id-b", uuidB, "xivo-ctid"))
	var seen []string
	for range 200 {
		s, _, _ := tr.find(t.Context(), uuidB)
		if !slices.Contains(seen, s.Address) {
			seen = append(seen, s.Address)
		}
	}
	if len(seen) != 2 {
		t.Errorf("saw %v, want either", seen)
	}
	tr.remove(uuidB, "stale")
	if s, ok, _ := tr.find(t.Context(), uuidB); !ok || s.ID != "id-b" {
		t.Errorf("after its deregistration: %+v", s)
	}
}

func TestTrackerAsksAsItsReleaseDoes(t *testing.T) {
	for name, c := range map[string]struct {
		release Release
		token   string // of ours
		asked   string // of each datacenter
	}{
		"15.20: any that is registered, without a token": {xivo1520, "t0ken", "GET /v1/catalog/service/xivo-ctid?dc=dc-b"},
		"16.14: the same":                            {Release{16, 14}, "t0ken", "GET /v1/catalog/service/xivo-ctid?dc=dc-b"},
		"16.14, whatever the token":                  {Release{16, 14}, "an0ther", "GET /v1/catalog/service/xivo-ctid?dc=dc-b"},
		"16.15: any that passes, whatever the token": {Release{16, 15}, "an0ther", "GET /v1/health/service/xivo-ctid?dc=dc-b&passing="},
		"16.16: the same":                            {xivo1616, "t0ken", "GET /v1/health/service/xivo-ctid?dc=dc-b&passing="},
	} {
		t.Run(name, func(t *testing.T) {
			d := newConsulDouble(t)
			d.add("dc-b", ctidAt("10.0.0.2", "id-b", "xivo-ctid", uuidB))
			d.config.Consul.Token = c.token
			log, _ := newLog(t)
			s, ok, err := newTracker(d.client(t, c.release), uuidA, 9495, log).find(t.Context(), uuidB)
			want := remoteService{"xivo-ctid", "id-b", "10.0.0.2", 9495, []string{"xivo-ctid", uuidB}}
			switch {
			case err != nil || !ok || !cmp.Equal(s, want):
				t.Errorf("found %+v %v %v, want %+v", s, ok, err, want)
			case d.count(c.asked) != 1:
				t.Errorf("asked %q, want %s", d.asked, c.asked)
			}
		})
	}
}
