package standin

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"
)

// searchThreads is the size of the one pool in which all lookups search their
// sources. Sources that do not answer hold a thread each until they time out.
const searchThreads = 10

// confdClientPort is where the client of xivo-confd connects when the
// configuration names no port.
const confdClientPort = 9486

// Dird stands in for xivo-dird: the search that a user's People list makes.
// Real lookups need a token of xivo-auth, which the lab has not; any is taken.
type Dird struct {
	Confgen          Confgen
	HTTPS            string // where to listen
	Certificate, Key string // PEM files, read at start
	Log              *slog.Logger
}

// Run reads the configuration once, and serves until the context ends.
func (d *Dird) Run(ctx context.Context, ready func([]net.Addr)) error {
	pair, err := serverTLS(d.Certificate, d.Key)
	if err != nil {
		return err
	}
	return serve(ctx, "xivo-dird", ready, endpoint{d.HTTPS, pair, d.Handler(ctx)})
}

// Handler reads the configuration, and answers from it for good: what changes
// in the database later is not seen.
func (d *Dird) Handler(ctx context.Context) http.Handler {
	return newLookup(d.Confgen.Dird(ctx), d.Log)
}

// lookup is the service, as configured at the start.
type lookup struct {
	http.Handler
	services map[string]lookupService
	displays map[string][]displayColumn
	profiles map[string]string
	sources  map[string]*userSource
	threads  chan struct{}
	log      *slog.Logger
}

func newLookup(config dirdConfig, log *slog.Logger) *lookup {
	l := &lookup{
		services: config.Services.Lookup,
		displays: config.Views.Displays,
		profiles: config.Views.ProfileToDisplay,
		sources:  map[string]*userSource{},
		threads:  make(chan struct{}, searchThreads),
		log:      log,
	}
	for name, s := range config.Sources {
		// The other kinds of directory answer nothing here.
		if s.Confd == nil {
			continue
		}
		loaded, err := newUserSource(s, log)
		if err != nil {
			log.Error("source not loaded", "source", name, "err", err)
			continue
		}
		l.sources[name] = loaded
	}
	log.Info("sources loaded", "sources", len(l.sources))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /0.1/directories/lookup/{profile}", l.get)
	l.Handler = mux
	return l
}

// contact is one line of an answer. In the real one column_values is a list in
// the order of column_headers; here it is keyed by the display's fields.
type contact struct {
	Source       string            `json:"source"`
	ColumnValues map[string]string `json:"column_values"`
	Relations    relations         `json:"relations"`
	fields       map[string]string
}

// relations tell a client what to subscribe to for a contact's statuses.
type relations struct {
	XivoID        string `json:"xivo_id"`
	AgentID       *int   `json:"agent_id"`
	UserID        int    `json:"user_id"`
	UserUUID      string `json:"user_uuid,omitempty"` // where xivo-confd tells it
	EndpointID    *int   `json:"endpoint_id"`
	SourceEntryID string `json:"source_entry_id"`
}

func (l *lookup) get(w http.ResponseWriter, r *http.Request) {
	profile, term := r.PathValue("profile"), r.URL.Query().Get("term")
	display, ok := l.profiles[profile]
	if !ok {
		refuse(w, http.StatusNotFound, "The profile does not exist")
		return
	}
	if !r.URL.Query().Has("term") {
		refuse(w, http.StatusBadRequest, "term is missing")
		return
	}
	headers, types, results := []string{}, []string{}, []contact{}
	for _, column := range l.displays[display] {
		headers, types = append(headers, column.Title), append(types, column.Type)
	}
	for _, c := range l.search(profile, term) {
		c.ColumnValues = map[string]string{}
		for _, column := range l.displays[display] {
			v, ok := c.fields[column.Field]
			if !ok {
				v = value(column.Default)
			}
			c.ColumnValues[column.Field] = v
		}
		results = append(results, c)
	}
	answer(w, http.StatusOK, map[string]any{"term": term, "column_headers": headers, "column_types": types, "results": results})
}

// search asks all sources of a profile at once and returns what came in time.
// Names that are no source are passed over.
func (l *lookup) search(profile, term string) []contact {
	service, ok := l.services[profile]
	if !ok {
		l.log.Warn("no lookup sources", "profile", profile)
		return nil
	}
	var asked int
	found := make(chan []contact, len(service.Sources))
	for _, name := range service.Sources {
		s, ok := l.sources[name]
		if !ok {
			continue
		}
		asked++
		// Not under the request's context: a search that nobody waits for any
		// more keeps its thread until it times out.
		go func() {
			l.threads <- struct{}{}
			defer func() { <-l.threads }()
			found <- s.search(context.Background(), term)
		}()
	}
	timeout := time.After(time.Duration(service.Timeout * float64(time.Second)))
	var all []contact
	for range asked {
		select {
		case some := <-found:
			all = append(all, some...)
		case <-timeout:
			l.log.Warn("lookup timed out", "profile", profile, "seconds", service.Timeout)
			return all
		}
	}
	return all
}

// userSource is a source of type xivo: the users of one XiVO.
type userSource struct {
	source
	base   url.URL
	client *http.Client
	log    *slog.Logger

	mu   sync.Mutex
	uuid string // of that XiVO: asked once, kept until the process ends
}

func newUserSource(s source, log *slog.Logger) (*userSource, error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{}}
	switch v := s.Confd.Verify.(type) {
	case string:
		pem, err := os.ReadFile(v)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		transport.TLSClientConfig.RootCAs = pool
	case bool:
		transport.TLSClientConfig.InsecureSkipVerify = !v
	}
	client := &http.Client{Transport: transport, Timeout: time.Duration(s.Confd.Timeout) * time.Second}
	if s.Confd.Username != "" && s.Confd.Password != "" {
		client.Transport = &digestTransport{s.Confd.Username, s.Confd.Password, transport}
	}
	scheme := "http"
	if s.Confd.HTTPS {
		scheme = "https"
	}
	host := s.Confd.Host + ":" + strconv.Itoa(cmp.Or(s.Confd.Port, confdClientPort))
	base := url.URL{Scheme: scheme, Host: host, Path: "/" + s.Confd.Version}
	return &userSource{source: s, base: base, client: client, log: log}, nil
}

// search asks the XiVO, and filters what it says again by the searched
// columns: without any nothing is ever found. A failure is no result.
func (s *userSource) search(ctx context.Context, term string) []contact {
	uuid, err := s.remoteUUID(ctx)
	if err != nil {
		s.log.Error("Cannot fetch UUID. No results will be returned", "source", s.Name, "err", err)
		return nil
	}
	params := url.Values{"view": {"directory"}}
	for name, v := range s.ExtraSearchParams {
		params.Set(name, v)
	}
	if term != "" {
		params.Set("search", term)
	}
	var users struct{ Items []map[string]any }
	if err := s.fetch(ctx, "users", params, &users); err != nil {
		s.log.Error("Cannot fetch entries. No results will be returned", "source", s.Name, "err", err)
		return nil
	}
	var found []contact
	for _, user := range users.Items {
		if c := s.contact(user, uuid); s.matches(c, term) {
			found = append(found, c)
		}
	}
	return found
}

func (s *userSource) remoteUUID(ctx context.Context) (string, error) {
	s.mu.Lock()
	uuid := s.uuid
	s.mu.Unlock()
	if uuid != "" {
		return uuid, nil
	}
	var infos struct{ UUID string }
	if err := s.fetch(ctx, "infos", nil, &infos); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uuid = infos.UUID
	return s.uuid, nil
}

func (s *userSource) fetch(ctx context.Context, path string, params url.Values, into any) error {
	u := s.base.JoinPath(path)
	u.RawQuery = params.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		return fmt.Errorf("GET %s: %s", u, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// sourceColumns are the fields of confd's answer that a source has.
var sourceColumns = []string{"id", "exten", "firstname", "lastname", "userfield", "description", "mobile_phone_number", "voicemail_number", "email"}

func (s *userSource) contact(user map[string]any, uuid string) contact {
	fields := map[string]string{}
	for _, column := range sourceColumns {
		switch v := user[column].(type) {
		case nil:
			fields[column] = ""
		case float64:
			fields[column] = strconv.FormatFloat(v, 'f', -1, 64)
		default:
			fields[column] = fmt.Sprint(v)
		}
	}
	formatted := map[string]string{}
	for name, format := range s.FormatColumns {
		formatted[name] = formatColumn(format, fields)
	}
	userUUID, _ := user["uuid"].(string)
	c := contact{
		Source: s.Name,
		Relations: relations{
			XivoID:        uuid,
			AgentID:       number(user["agent_id"]),
			UserUUID:      userUUID,
			EndpointID:    number(user["line_id"]),
			SourceEntryID: fields["id"],
		},
		fields: fields,
	}
	if id := number(user["id"]); id != nil {
		c.Relations.UserID = *id
	}
	for name, v := range formatted {
		fields[name] = v
	}
	return c
}

func number(v any) *int {
	f, ok := v.(float64)
	if !ok {
		return nil
	}
	n := int(f)
	return &n
}

var placeholder = regexp.MustCompile(`\{([^{}]*)\}`)

// formatColumn fills a Python format string; an unknown field is empty.
func formatColumn(format string, fields map[string]string) string {
	return strings.TrimSpace(placeholder.ReplaceAllStringFunc(format, func(m string) string {
		return fields[m[1:len(m)-1]]
	}))
}

func (s *userSource) matches(c contact, term string) bool {
	for _, column := range s.SearchedColumns {
		if strings.Contains(strings.ToLower(c.fields[column]), strings.ToLower(term)) {
			return true
		}
	}
	return false
}
