package standin

import (
	"slices"
	"testing"
)

func ctidAt(address, id string, tags ...string) catalogService {
	return catalogService{ServiceID: id, ServiceName: "xivo-ctid", ServiceAddress: address, ServicePort: 9495, ServiceTags: tags}
}

func newTrackerTest(t *testing.T) (*consulDouble, *tracker) {
	d := newConsulDouble(t)
	log, _ := newLog(t)
	return d, newTracker(d.client(t), uuidA, 9495, log)
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
	d.forbidden["dc-a"] = true // it has another master token
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
