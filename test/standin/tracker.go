package standin

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
)

// remoteService is a service of some XiVO, as Consul or the bus tells it.
type remoteService struct {
	Name    string   `json:"service_name"`
	ID      string   `json:"service_id"`
	Address string   `json:"address"`
	Port    int      `json:"port"`
	Tags    []string `json:"tags"`
}

// tracker finds the xivo-ctid of a UUID. Consul is asked once for each: what
// it answered is kept, AN EMPTY ANSWER TOO, until the process ends. Only a
// service.registered message for the UUID adds to it. An error is not kept.
type tracker struct {
	consul *consulClient
	log    *slog.Logger

	mu    sync.Mutex
	known map[string][]remoteService // by UUID; there but empty: not to be asked again
}

// newTracker knows the local one from the start, at localhost.
func newTracker(consul *consulClient, uuid string, port int, log *slog.Logger) *tracker {
	t := &tracker{consul: consul, log: log, known: map[string][]remoteService{}}
	t.add(uuid, remoteService{Name: "xivo-ctid", Address: "localhost", Port: port, Tags: []string{"xivo-ctid", uuid}})
	return t
}

func (t *tracker) add(uuid string, services ...remoteService) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[uuid] = append(t.known[uuid], services...)
}

func (t *tracker) remove(uuid, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// A UUID that nobody asked for becomes one that has no service.
	t.known[uuid] = slices.DeleteFunc(t.known[uuid], func(s remoteService) bool { return s.ID == id })
}

// find returns any of the UUID's services: a stale one that Consul still holds
// is as good as the live one.
func (t *tracker) find(ctx context.Context, uuid string) (s remoteService, ok bool, err error) {
	t.mu.Lock()
	_, asked := t.known[uuid]
	t.mu.Unlock()
	if !asked {
		// What the datacenters before a failing one said is kept.
		found, err := t.fetch(ctx, uuid)
		if err == nil || len(found) > 0 {
			t.add(uuid, found...)
		}
		if err != nil {
			return remoteService{}, false, err
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.known[uuid]
	if len(known) == 0 {
		return remoteService{}, false, nil
	}
	return known[rand.IntN(len(known))], true, nil
}

// fetch asks every datacenter that the local agent knows, one after the other,
// for the xivo-ctid that are tagged with the UUID. The first datacenter that
// cannot be asked ends it.
func (t *tracker) fetch(ctx context.Context, uuid string) ([]remoteService, error) {
	t.log.Debug("asking consul", "uuid", uuid)
	datacenters, err := t.consul.datacenters(ctx)
	if err != nil {
		return nil, err
	}
	var found []remoteService
	for _, dc := range datacenters {
		services, err := t.consul.services(ctx, "xivo-ctid", dc)
		if err != nil {
			return found, err
		}
		for _, s := range services {
			known := slices.ContainsFunc(found, func(f remoteService) bool { return f.ID == s.ServiceID })
			if slices.Contains(s.ServiceTags, uuid) && !known {
				found = append(found, remoteService{s.ServiceName, s.ServiceID, s.ServiceAddress, s.ServicePort, s.ServiceTags})
			}
		}
	}
	return found, nil
}
