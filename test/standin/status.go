package standin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// resourceKind is something that has a status which clients watch.
type resourceKind struct {
	name       string // as in the class of a message
	id         string // the field that names one
	path       string // of xivo-ctid's HTTP API; "": never fetched, events only
	status     string // the field of that API's answer
	routingKey string
}

var (
	userKind     = resourceKind{"user", "user_id", "users", "presence", "status.user"}
	endpointKind = resourceKind{"endpoint", "endpoint_id", "endpoints", "status", "status.endpoint"}
	// Agents are fetched from the local xivo-agentd only, and there is none.
	agentKind = resourceKind{name: "agent", id: "agent_id", routingKey: "status.agent"}
)

// resource is the key of a status: ids mean nothing without the XiVO they are
// of, and two XiVO with one UUID mix theirs up.
type resource struct {
	xivoUUID string
	id       int
}

// notifier keeps the last status of every resource of a kind that was heard
// of, and tells those who watch.
type notifier struct {
	release Release
	kind    resourceKind
	tracker *tracker
	http    *http.Client
	log     *slog.Logger

	mu       sync.Mutex
	statuses map[resource]json.RawMessage
	watchers map[resource]map[*ctiClient]bool
}

func newNotifier(release Release, kind resourceKind, tracker *tracker, log *slog.Logger) *notifier {
	return &notifier{
		release: release, kind: kind, tracker: tracker, log: log,
		http:     &http.Client{Timeout: 10 * time.Second},
		statuses: map[resource]json.RawMessage{},
		watchers: map[resource]map[*ctiClient]bool{},
	}
}

// watch subscribes a client. A status that is known is sent at once; another
// is fetched from the XiVO that has it, and when that fails nothing is sent.
func (n *notifier) watch(ctx context.Context, c *ctiClient, r resource) {
	n.mu.Lock()
	if n.watchers[r] == nil {
		n.watchers[r] = map[*ctiClient]bool{}
	}
	n.watchers[r][c] = true
	status, known := n.statuses[r]
	if known {
		c.send(n.message(r, status))
	}
	n.mu.Unlock()
	if !known {
		n.fetch(ctx, r)
	}
}

func (n *notifier) forget(c *ctiClient) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, watchers := range n.watchers {
		delete(watchers, c)
	}
}

func (n *notifier) update(r resource, status json.RawMessage) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.statuses[r] = status
	for c := range n.watchers[r] {
		c.send(n.message(r, status))
	}
}

// serviceStarted fetches what is watched of a XiVO and not known yet.
func (n *notifier) serviceStarted(ctx context.Context, uuid string) {
	n.mu.Lock()
	var missing []resource
	for r := range n.watchers {
		if _, known := n.statuses[r]; r.xivoUUID == uuid && !known {
			missing = append(missing, r)
		}
	}
	n.mu.Unlock()
	for _, r := range missing {
		n.fetch(ctx, r)
	}
}

func (n *notifier) message(r resource, status json.RawMessage) map[string]any {
	return map[string]any{"class": n.kind.name + "_status_update", "xivo_uuid": r.xivoUUID, n.kind.id: r.id, "status": status}
}

// fetch asks in the background. The answer counts for the UUID that the other
// side says it has, which need not be the one that was asked for.
func (n *notifier) fetch(ctx context.Context, r resource) {
	if n.kind.path == "" || r.id == 0 || !n.release.fetchesByItself() {
		return
	}
	go func() {
		s, ok, err := n.tracker.find(ctx, r.xivoUUID)
		if err != nil {
			n.log.Info("failed to find xivo-ctid", "uuid", r.xivoUUID, "err", err)
			return
		}
		if !ok {
			n.log.Warn("status_fetcher: cannot find a running xivo-ctid service", "uuid", r.xivoUUID)
			return
		}
		of, status, err := n.get(ctx, s, r.id)
		if err != nil {
			n.log.Warn("status_fetcher: could not fetch status", "kind", n.kind.name, "err", err)
			return
		}
		n.update(of, status)
	}()
}

func (n *notifier) get(ctx context.Context, s remoteService, id int) (of resource, status json.RawMessage, err error) {
	u := fmt.Sprintf("http://%s/0.1/%s/%d", net.JoinHostPort(s.Address, strconv.Itoa(s.Port)), n.kind.path, id)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return of, nil, err
	}
	resp, err := n.http.Do(req)
	if err != nil {
		return of, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return of, nil, fmt.Errorf("GET %s: %s", u, resp.Status)
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return of, nil, err
	}
	var fields map[string]json.RawMessage
	var head struct {
		ID         int
		OriginUUID string `json:"origin_uuid"`
	}
	if err := json.Unmarshal(text, &fields); err != nil {
		return of, nil, fmt.Errorf("GET %s: %w", u, err)
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return of, nil, fmt.Errorf("GET %s: %w", u, err)
	}
	return resource{head.OriginUUID, head.ID}, fields[n.kind.status], nil
}
