package consul

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

const (
	// callTimeout is the deadline of one call of the API; a datacenter that is
	// away answers after its own, which is longer.
	callTimeout = 5 * time.Second
	// again is how often a wait looks.
	again = 200 * time.Millisecond
)

// Client speaks to the local agent.
type Client struct{ api *api.Client }

// Dial prepares a client of the local agent: at the port that its configuration
// says, with the token and the certificate of its files. Nothing is sent yet.
func Dial(p *platform.Platform) (*Client, error) {
	config, err := readConfiguration(p)
	if err != nil {
		return nil, err
	}
	token, err := readToken(p)
	if err != nil {
		return nil, err
	}
	return dial(p, fmt.Sprintf("127.0.0.1:%d", config.Ports.HTTPS), token)
}

func dial(p *platform.Platform, address, token string) (*Client, error) {
	raw, err := os.ReadFile(p.Path(platform.CertificateFile))
	if err != nil {
		return nil, fmt.Errorf("consul: its certificate: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		return nil, fmt.Errorf("consul: %s is not a PEM certificate", platform.CertificateFile)
	}
	c, err := api.NewClient(&api.Config{
		Address: address,
		Scheme:  "https",
		Token:   token,
		HttpClient: &http.Client{
			// For the calls that take no context, and the joins that wait for a
			// host that is not there.
			Timeout:   2 * callTimeout,
			Transport: &transport{token: token, next: &http.Transport{TLSClientConfig: pinned(block.Bytes)}},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("consul: %w", err)
	}
	return &Client{c}, nil
}

// pinned accepts just this certificate. XiVO's own has CN=* and no names, which
// cannot be verified; being the file's is more than a verification would say.
func pinned(certificate []byte) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true,
		VerifyPeerCertificate: func(chain [][]byte, _ [][]*x509.Certificate) error {
			if len(chain) == 0 || !bytes.Equal(chain[0], certificate) {
				return fmt.Errorf("the server's certificate is not the one in %s", platform.CertificateFile)
			}
			return nil
		},
	}
}

// transport sends the token as ?token= too: Consul 0.5 reads no header.
type transport struct {
	token string
	next  http.RoundTripper
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	q := r.URL.Query()
	q.Set("token", t.token)
	r.URL.RawQuery = q.Encode()
	res, err := t.next.RoundTrip(r)
	if err != nil {
		// The client would put the URL, and the token with it, into the error.
		return nil, errors.New(strings.ReplaceAll(err.Error(), t.token, "[redacted]"))
	}
	return res, nil
}

// clean keeps the token out of errors: net/http names the URL in them.
func (c *Client) clean(doing string, err error) error {
	if err == nil {
		return nil
	}
	said := err.Error()
	if i := strings.Index(said, "token="); i >= 0 {
		j := i + strings.IndexAny(said[i:]+"\"", "&\" ")
		said = said[:i] + "token=[redacted]" + said[min(j, len(said)):]
	}
	return fmt.Errorf("consul: %s: %s", doing, said)
}

func options(ctx context.Context, dc string) (*api.QueryOptions, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	return (&api.QueryOptions{Datacenter: dc}).WithContext(ctx), cancel
}

// WaitLeader returns once the agent has a leader that takes our token. ctx
// bounds the wait; the error says what was missing.
func (c *Client) WaitLeader(ctx context.Context) error {
	start := time.Now()
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		err := c.ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (waited %s); see the log of consul", err, time.Since(start).Round(time.Second))
		case <-ticker.C:
		}
	}
}

func (c *Client) ready(ctx context.Context) error {
	q, cancel := options(ctx, "")
	defer cancel()
	leader, err := c.api.Status().LeaderWithQueryOptions(q)
	if err != nil {
		return c.clean("wait for a leader", err)
	}
	if leader == "" {
		return errors.New("consul: it has no leader yet")
	}
	// Every server registers the service consul; an answer without it was
	// filtered, because the token is not taken (yet).
	services, _, err := c.api.Catalog().Services(q)
	if err != nil {
		return c.clean("read the catalog", err)
	}
	if _, ok := services["consul"]; !ok {
		return errors.New("consul: the catalog shows nothing: is the token in " + masterTokenFile + " the agent's?")
	}
	return nil
}

// Registration is a service, as the agent or a catalog holds it.
type Registration struct {
	ID, Name, Address string
	Tags              []string
}

// LocalServices returns what is registered with the local agent.
func (c *Client) LocalServices(ctx context.Context) ([]Registration, error) {
	q, cancel := options(ctx, "")
	defer cancel()
	services, err := c.api.Agent().ServicesWithFilterOpts("", q)
	if err != nil {
		return nil, c.clean("read the agent's services", err)
	}
	var out []Registration
	for _, s := range services {
		out = append(out, Registration{s.ID, s.Service, s.Address, s.Tags})
	}
	return out, nil
}

// Services returns a service of a datacenter's catalog; none where that
// datacenter has no such service. An answer that was filtered is an error.
func (c *Client) Services(ctx context.Context, dc, name string) ([]Registration, error) {
	q, cancel := options(ctx, dc)
	defer cancel()
	names, _, err := c.api.Catalog().Services(q)
	if err != nil {
		return nil, c.clean("read the catalog of "+dc, err)
	}
	if _, ok := names["consul"]; !ok {
		return nil, fmt.Errorf("consul: the catalog of %s shows nothing: it does not take the mesh's token", dc)
	}
	if _, ok := names[name]; !ok {
		return nil, nil
	}
	services, _, err := c.api.Catalog().Service(name, "", q)
	if err != nil {
		return nil, c.clean("read "+name+" of "+dc, err)
	}
	var out []Registration
	for _, s := range services {
		address := s.ServiceAddress
		if address == "" {
			address = s.Address
		}
		out = append(out, Registration{s.ServiceID, s.ServiceName, address, s.ServiceTags})
	}
	return out, nil
}

// WaitService returns once a service is registered with the local agent at an
// address. ctx bounds the wait.
func (c *Client) WaitService(ctx context.Context, name, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		services, err := c.LocalServices(ctx)
		if err == nil && slices.ContainsFunc(services, func(r Registration) bool { return r.Name == name && r.Address == address }) {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("consul: %s did not register at %s; see its log", name, address), err)
		case <-ticker.C:
		}
	}
}

// Registered is a service of the local agent, as given. The agent keeps it over
// restarts.
func (c *Client) Registered(r Registration) *Service { return &Service{c, r} }

// Service is what Registered returns.
type Service struct {
	client *Client
	want   Registration
}

// Diff says whether it is registered so. The order of tags does not count.
func (s *Service) Diff(ctx context.Context) ([]string, error) {
	services, err := s.client.LocalServices(ctx)
	if err != nil {
		return nil, err
	}
	tags := func(r Registration) []string { return slices.Sorted(slices.Values(r.Tags)) }
	for _, have := range services {
		if have.ID != s.want.ID {
			continue
		}
		if have.Name == s.want.Name && have.Address == s.want.Address && slices.Equal(tags(have), tags(s.want)) {
			return nil, nil
		}
		return []string{"service " + s.want.Name + " is registered otherwise"}, nil
	}
	return []string{"service " + s.want.Name + " is not registered"}, nil
}

// Apply registers it.
func (s *Service) Apply(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := s.client.api.Agent().ServiceRegisterOpts(&api.AgentServiceRegistration{
		ID:      s.want.ID,
		Name:    s.want.Name,
		Address: s.want.Address,
		Tags:    s.want.Tags,
	}, api.ServiceRegisterOpts{}.WithContext(ctx))
	return s.client.clean("register "+s.want.Name, err)
}

// Member is a server of the WAN.
type Member struct {
	// Name is NODE.DATACENTER.
	Name, Datacenter, Address string
	Alive                     bool
}

// alive is serf's number for it.
const alive = 1

// WANMembers returns what the local agent knows of the WAN; itself is in it, so
// an empty list is an error.
func (c *Client) WANMembers(ctx context.Context) ([]Member, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	members, err := c.api.Agent().MembersOpts(api.MembersOpts{WAN: true})
	if err != nil {
		return nil, c.clean("list the WAN's members", err)
	}
	var out []Member
	for _, m := range members {
		out = append(out, Member{Name: m.Name, Datacenter: m.Tags["dc"], Address: m.Addr, Alive: m.Status == alive})
	}
	if len(out) == 0 {
		return nil, errors.New("consul: the list of the WAN's members is empty, although this node must be in it: is the token the agent's?")
	}
	return out, nil
}

// JoinedWAN is every address being an alive member of the WAN.
func (c *Client) JoinedWAN(addresses []string) *WAN { return &WAN{c, addresses} }

// WAN is what JoinedWAN returns.
type WAN struct {
	client    *Client
	addresses []string
}

func (w *WAN) missing(ctx context.Context) ([]string, error) {
	members, err := w.client.WANMembers(ctx)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range w.addresses {
		if !slices.ContainsFunc(members, func(m Member) bool { return m.Alive && m.Address == a }) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Diff names the addresses that are not.
func (w *WAN) Diff(ctx context.Context) ([]string, error) {
	missing, err := w.missing(ctx)
	for i := range missing {
		missing[i] += " is not in Consul's WAN"
	}
	return missing, err
}

// Apply joins each of them; one that fails does not keep the others out.
func (w *WAN) Apply(ctx context.Context) error {
	missing, err := w.missing(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range missing {
		errs = append(errs, w.client.clean("join "+a, w.client.api.Agent().Join(a, true)))
	}
	return errors.Join(errs...)
}
