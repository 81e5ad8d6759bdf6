package standin

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// consulClient speaks to the local agent.
type consulClient struct {
	release Release
	base    string
	token   string
	client  *http.Client
}

// catalogService is an entry of /v1/catalog/service.
type catalogService struct {
	ServiceID, ServiceName, ServiceAddress string
	ServicePort                            int
	ServiceTags                            []string
}

func newConsulClient(release Release, c ctidConfig) (*consulClient, error) {
	config := &tls.Config{}
	switch verify := c.Consul.Verify.(type) {
	case string:
		// XiVO's certificate is made out to "*", which no verifier of today
		// takes: it is compared whole instead.
		pinned, err := readCertificate(verify)
		if err != nil {
			return nil, err
		}
		config.InsecureSkipVerify = true
		config.VerifyPeerCertificate = func(chain [][]byte, _ [][]*x509.Certificate) error {
			if len(chain) == 0 || !bytes.Equal(chain[0], pinned) {
				return fmt.Errorf("the server's certificate is not the one in %s", verify)
			}
			return nil
		}
	case bool:
		config.InsecureSkipVerify = !verify
	}
	return &consulClient{
		release: release,
		base:    fmt.Sprintf("%s://%s:%d/v1/", c.Consul.Scheme, c.Consul.Host, c.Consul.Port),
		token:   c.Consul.Token,
		client:  &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 20 * time.Second},
	}, nil
}

func readCertificate(file string) (der []byte, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no certificate in %s", file)
	}
	return block.Bytes, nil
}

func (c *consulClient) do(ctx context.Context, method, path string, query url.Values, body, into any) error {
	var text io.Reader
	if body != nil {
		encoded, err := json.Marshal(body)
		if err != nil {
			return err
		}
		text = bytes.NewReader(encoded)
	}
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, text)
	if err != nil {
		return err
	}
	req.Header.Set("X-Consul-Token", c.token)
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("consul: %s %s: %s: %s", method, path, resp.Status, strings.TrimSpace(string(said)))
	}
	if into == nil {
		return nil
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

func (c *consulClient) register(ctx context.Context, s remoteService, check map[string]string) error {
	return c.do(ctx, http.MethodPut, "agent/service/register", nil, map[string]any{
		"ID": s.ID, "Name": s.Name, "Address": s.Address, "Port": s.Port, "Tags": s.Tags,
		"Check": check,
	}, nil)
}

func (c *consulClient) passTTL(ctx context.Context, serviceID string) error {
	return c.do(ctx, http.MethodPut, "agent/check/pass/service:"+serviceID, nil, nil, nil)
}

func (c *consulClient) deregister(ctx context.Context, serviceID string) error {
	return errors.Join(
		c.do(ctx, http.MethodPut, "agent/check/deregister/service:"+serviceID, nil, nil, nil),
		c.do(ctx, http.MethodPut, "agent/service/deregister/"+serviceID, nil, nil, nil))
}

// asking is the client with which others are looked up: without a token, whatever the
// configuration holds (docs/xivo/ctid.md).
func (c *consulClient) asking() *consulClient {
	anonymous := *c
	anonymous.token = ""
	return &anonymous
}

func (c *consulClient) datacenters(ctx context.Context) (names []string, err error) {
	err = c.asking().do(ctx, http.MethodGet, "catalog/datacenters", nil, nil, &names)
	return names, err
}

// services asks a datacenter: health left out of account, or later for those that pass
// their checks.
func (c *consulClient) services(ctx context.Context, name, datacenter string) (found []catalogService, err error) {
	if c.release.asksForHealthy() {
		return c.passing(ctx, name, datacenter)
	}
	err = c.asking().do(ctx, http.MethodGet, "catalog/service/"+name, url.Values{"dc": {datacenter}}, nil, &found)
	return found, err
}

func (c *consulClient) passing(ctx context.Context, name, datacenter string) (found []catalogService, err error) {
	var entries []struct {
		Service struct {
			ID, Service, Address string
			Port                 int
			Tags                 []string
		}
	}
	err = c.asking().do(ctx, http.MethodGet, "health/service/"+name, url.Values{"dc": {datacenter}, "passing": {""}}, nil, &entries)
	for _, e := range entries {
		s := e.Service
		found = append(found, catalogService{ServiceID: s.ID, ServiceName: s.Service, ServiceAddress: s.Address, ServicePort: s.Port, ServiceTags: s.Tags})
	}
	return found, err
}
