package scenario

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// Contact is a line of a user's People list.
type Contact struct {
	Source       string            `json:"source"`
	ColumnValues map[string]string `json:"column_values"`
	Relations    struct {
		XivoID string `json:"xivo_id"`
		UserID int    `json:"user_id"`
	} `json:"relations"`
}

// Name is what the list shows.
func (c Contact) Name() string { return c.ColumnValues["name"] }

// Lookup searches in the People list of a user of this node, in the context
// default: a question to its xivo-dird over HTTPS, from the user's computer.
func (n *Node) Lookup(ctx context.Context, term string) ([]Contact, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext:       n.dial,
		DisableKeepAlives: true,
		// XiVO's certificate is for any name and of its own making.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	u := fmt.Sprintf("https://%s/0.1/directories/lookup/default?term=%s", n.at(9489), url.QueryEscape(term))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s: search for %q: %w", n.Name, term, err)
	}
	defer resp.Body.Close()
	var answer struct{ Results []Contact }
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: search for %q: %s", n.Name, term, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, fmt.Errorf("%s: search for %q: %w", n.Name, term, err)
	}
	return answer.Results, nil
}

// Finds waits until a search on this node shows the user of another node as the
// one that it is: once, and with the other's UUID and id.
func (n *Node) Finds(ctx context.Context, u User, uuid string) error {
	return lab.Wait(ctx, fmt.Sprintf("a search on %s to find %s %s", n.Name, u.Firstname, u.Lastname), func(ctx context.Context) (bool, error) {
		found, err := n.Lookup(ctx, u.Lastname)
		if err != nil {
			return false, err
		}
		matches := 0
		for _, c := range found {
			if c.Name() != u.Firstname+" "+u.Lastname {
				continue
			}
			matches++
			if c.Relations.XivoID != uuid || c.Relations.UserID != u.ID {
				return false, fmt.Errorf("it finds user %d of XiVO %q, not user %d of %s", c.Relations.UserID, c.Relations.XivoID, u.ID, uuid)
			}
		}
		if matches != 1 {
			return false, fmt.Errorf("it finds that user %d times among %d results", matches, len(found))
		}
		return true, nil
	})
}

// Client is a XiVO Client: a person at a computer, logged in on a node, who
// stays connected.
type Client struct {
	node *Node
	conn net.Conn

	mu      sync.Mutex
	status  map[userKey]string
	told    []Told
	gone    error // why the connection ended; nil while it stands
	changed chan struct{}
}

type userKey struct {
	xivo string
	id   int
}

// Told is something that a client was told: a status of a user, or, without the UUID of
// a XiVO, that its own change of one was done.
type Told struct {
	XiVO   string
	User   int
	Status string
	At     time.Time
}

// dial connects from where this node's people are.
func (n *Node) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.Inside {
		return n.Net().Dial(ctx, network, address)
	}
	return n.mesh.Lab.Dial(ctx, network, address)
}

// at is where they find a port of this node.
func (n *Node) at(port uint16) string {
	if n.Inside {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port).String()
	}
	return netip.AddrPortFrom(n.Address, port).String()
}

// Connect logs in on this node.
func (n *Node) Connect(ctx context.Context) (*Client, error) {
	conn, err := n.dial(ctx, "tcp", n.at(5003))
	if err != nil {
		return nil, fmt.Errorf("%s: log in: %w", n.Name, err)
	}
	c := &Client{node: n, conn: conn, status: map[userKey]string{}, changed: make(chan struct{}, 1)}
	go c.read()
	return c, nil
}

func (c *Client) read() {
	lines := bufio.NewScanner(c.conn)
	for lines.Scan() {
		var m struct {
			Class    string `json:"class"`
			XivoUUID string `json:"xivo_uuid"`
			UserID   int    `json:"user_id"`
			Status   string `json:"status"`
		}
		if json.Unmarshal(lines.Bytes(), &m) == nil && (m.Class == "user_status_update" || m.Class == "set_user_status") {
			c.mu.Lock()
			c.status[userKey{m.XivoUUID, m.UserID}] = m.Status
			c.told = append(c.told, Told{m.XivoUUID, m.UserID, m.Status, time.Now()})
			c.mu.Unlock()
		}
		c.wake()
	}
	c.mu.Lock()
	c.gone = errors.Join(errors.New("the server closed the connection"), lines.Err())
	c.mu.Unlock()
	c.wake()
}

func (c *Client) wake() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Close logs out.
func (c *Client) Close() error { return c.conn.Close() }

// Connected is nil as long as the connection made by Connect stands.
func (c *Client) Connected() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone != nil {
		return fmt.Errorf("the client on %s was dropped: %w", c.node.Name, c.gone)
	}
	return nil
}

func (c *Client) send(message map[string]any) error {
	if err := json.NewEncoder(c.conn).Encode(message); err != nil {
		return fmt.Errorf("the client on %s: %w", c.node.Name, err)
	}
	return nil
}

// Watch asks for the status of a user, now and at every change.
func (c *Client) Watch(xivo string, user int) error {
	return c.send(map[string]any{"class": "subscribe_user_status", "xivo_uuid": xivo, "user_id": user})
}

// SetStatus changes the status of a user of the node that it is connected to.
func (c *Client) SetStatus(user int, status string) error {
	return c.send(map[string]any{"class": "set_user_status", "user_id": user, "status": status})
}

// Told is all that it was told, in order.
func (c *Client) Told() []Told {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.told)
}

// Sees waits until this client was told that status; without a UUID, that it was set.
func (c *Client) Sees(ctx context.Context, xivo string, user int, status string) error {
	return c.await(ctx, xivo, user, fmt.Sprintf("as %q", status), func(have string) bool { return have == status })
}

// Learns waits until this client was told any status of the user.
func (c *Client) Learns(ctx context.Context, xivo string, user int) error {
	return c.await(ctx, xivo, user, "at all", func(have string) bool { return have != "" })
}

func (c *Client) await(ctx context.Context, xivo string, user int, how string, done func(have string) bool) error {
	for {
		c.mu.Lock()
		have, gone := c.status[userKey{xivo, user}], c.gone
		c.mu.Unlock()
		if done(have) {
			return nil
		}
		if gone != nil {
			return c.Connected()
		}
		select {
		case <-c.changed:
		case <-ctx.Done():
			return fmt.Errorf("the client on %s does not see user %d of %s %s (it saw %q): %w", c.node.Name, user, xivo, how, have, context.Cause(ctx))
		}
	}
}
