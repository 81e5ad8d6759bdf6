// Package scenario is a mesh of lab machines as the demo and the end-to-end
// tests need it: nodes that boot from a baked image with one document for all,
// and the people who use them.
package scenario

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
)

// Mesh is a lab in which every node gets the same user data.
type Mesh struct {
	Lab      *lab.Lab
	Secret   string // of the mesh; it must show in nobody's output
	userData []byte
}

// New makes an empty mesh on a baked image (a raw disk), or on the folders of a
// root: see lab.New.
func New(ctx context.Context, image string, layers ...string) (*Mesh, error) {
	l, err := lab.New(ctx, image, layers...)
	if err != nil {
		return nil, err
	}
	return On(l), nil
}

// On makes an empty mesh in a lab, which Close ends.
func On(l *lab.Lab) *Mesh {
	m := &Mesh{Lab: l, Secret: rand.Text()}
	m.userData = fmt.Appendf(nil, "#cloud-config\nxivo:\n  version: 1\n  peers: [%s]\n  secret: %s\n", Address(1), m.Secret)
	return m
}

// Close ends every node at once.
func (m *Mesh) Close() error { return m.Lab.Close() }

// Address is where node n (1, 2, ...) is.
func Address(n int) netip.Addr {
	a := lab.Network.Addr().As4()
	a[3] = byte(10 + n)
	return netip.AddrFrom4(a)
}

// Node is one machine of the mesh.
type Node struct {
	*lab.Machine
	Number int
	// Inside: its people sit at the node itself, for which its address may change.
	Inside bool
	mesh   *Mesh
}

// Boot switches on node n: a new clone of the image, with a seed that has an
// instance id, a host name, an address and the document of all.
func (m *Mesh) Boot(ctx context.Context, n int) (*Node, error) {
	return m.boot(ctx, n, m.userData, nil)
}

// BootWith switches on node n with user data of its own; nil is none.
func (m *Mesh) BootWith(ctx context.Context, n int, userData []byte) (*Node, error) {
	return m.boot(ctx, n, userData, nil)
}

// BootCopy switches on node n with a copy of the disk of another, which is off,
// and with a seed of its own: as when somebody clones the VM of a node.
func (m *Mesh) BootCopy(ctx context.Context, n int, of *Node) (*Node, error) {
	return m.boot(ctx, n, m.userData, of.Machine)
}

// BootBehind switches on node n where a neighbour is its gateway, and the bridge is not
// its link.
func (m *Mesh) BootBehind(ctx context.Context, n int, router *lab.Neighbour, gateway, address netip.Addr) (*Node, error) {
	machine, err := m.Lab.Start(ctx, lab.Node{
		Name: nameOf(n), InstanceID: "iid-" + nameOf(n), Address: address, Gateway: gateway, UserData: m.userData,
	})
	if err != nil {
		return nil, err
	}
	return &Node{Machine: machine, Number: n, Inside: true, mesh: m}, machine.Behind(ctx, router)
}

// BootTwin switches on node n with a copy of the disk of another, which is off, and with
// the other's instance id: nothing tells that it is a copy.
func (m *Mesh) BootTwin(ctx context.Context, n int, of *Node) (*Node, error) {
	machine, err := m.Lab.Start(ctx, lab.Node{
		Name: nameOf(n), InstanceID: "iid-" + of.Name, Address: Address(n), UserData: m.userData, Disk: of.Machine,
	})
	if err != nil {
		return nil, err
	}
	return &Node{Machine: machine, Number: n, mesh: m}, nil
}

func nameOf(n int) string { return "node" + strconv.Itoa(n) }

func (m *Mesh) boot(ctx context.Context, n int, userData []byte, disk *lab.Machine) (*Node, error) {
	machine, err := m.Lab.Start(ctx, lab.Node{
		Name:       nameOf(n),
		InstanceID: "iid-" + nameOf(n),
		Address:    Address(n),
		UserData:   userData,
		Disk:       disk,
	})
	if err != nil {
		return nil, err
	}
	return &Node{Machine: machine, Number: n, mesh: m}, nil
}

// Status is what `xivo-firstboot status --json` says, as far as anybody here
// asks. It is spelled out once more on purpose: it is an interface.
type Status struct {
	State    string
	Why      string
	At       time.Time // when it was so
	Version  string
	Identity struct {
		UUID     string
		Hostname string
	}
	Peers   []Peer
	Refused []struct {
		Member struct{ UUID, Host string }
		Reason string
	}
	NotManaged []string `json:"not_managed"`
	Notices    []string
	Errors     []string
}

// Peer is another node of the mesh in a Status.
type Peer struct {
	UUID     string
	Host     string
	Answered bool
}

// Answered says whether the peer of that UUID answered a message.
func (s Status) Answered(uuid string) bool {
	for _, p := range s.Peers {
		if p.UUID == uuid {
			return p.Answered
		}
	}
	return false
}

// Status asks the node.
func (n *Node) Status(ctx context.Context) (Status, error) {
	var s Status
	out, err := n.Run(ctx, "xivo-firstboot", "status", "--json")
	const waiting = 3
	if err != nil && lab.ExitCode(err) != waiting {
		return s, err
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&s); err != nil {
		return s, fmt.Errorf("%s: read its status: %w: %s", n.Name, err, out)
	}
	return s, nil
}

// WaitJoined waits until the node says of a time after its power-on, and after
// since, that it is joined and at least that many peers answer it.
func (n *Node) WaitJoined(ctx context.Context, peers int, since time.Time) (Status, error) {
	if since.Before(n.Booted) {
		since = n.Booted
	}
	var s Status
	err := lab.Wait(ctx, fmt.Sprintf("%s to be joined with %d peers", n.Name, peers), func(ctx context.Context) (bool, error) {
		var err error
		if s, err = n.Status(ctx); err != nil {
			return false, err
		}
		answering := 0
		for _, p := range s.Peers {
			if p.Answered {
				answering++
			}
		}
		if s.State == "joined" && answering >= peers && s.At.After(since) {
			return true, nil
		}
		return false, fmt.Errorf("%s ago it was %s with %d of %d peers answering: %s %s", time.Since(s.At).Round(time.Second), s.State, answering, peers, s.Why, strings.Join(s.Errors, "; "))
	})
	return s, err
}

// UUID is the XiVO UUID in the node's database.
func (n *Node) UUID(ctx context.Context) (string, error) {
	return n.SQL(ctx, "SELECT uuid FROM infos")
}

// MeshAddress is the node's address in the network of the mesh's own.
func (n *Node) MeshAddress(ctx context.Context) (string, error) {
	out, err := n.Run(ctx, "cat", "/var/lib/xivo-firstboot/mesh/address.json")
	if err != nil {
		return "", err
	}
	var kept struct{ Address string }
	err = json.Unmarshal([]byte(out), &kept)
	return kept.Address, err
}

// User is a person on a node.
type User struct {
	ID                  int
	Firstname, Lastname string
}

// AddUser creates a user as an administrator does after the first boot. Nobody
// of another node has the name; the ids are the same on all nodes.
func (n *Node) AddUser(ctx context.Context, firstname string) (User, error) {
	u := User{Firstname: firstname, Lastname: "Of-Node-" + strconv.Itoa(n.Number)}
	out, err := n.SQL(ctx, `INSERT INTO userfeatures (firstname, lastname, exten, context, line_id)
		VALUES (:'a1', :'a2', :'a3', 'default', (SELECT max(id) + 1 FROM userfeatures)) RETURNING id`,
		u.Firstname, u.Lastname, strconv.Itoa(1000*n.Number+1))
	if err != nil {
		return User{}, err
	}
	u.ID, err = strconv.Atoi(out)
	return u, err
}

// Held is how long XiVO's daemons waited for become and settle at this boot:
// both run before them.
func (n *Node) Held(ctx context.Context) (time.Duration, error) {
	var held time.Duration
	for _, unit := range []string{"xivo-firstboot.service", "xivo-firstboot-settle.service"} {
		from, err := n.since(ctx, unit, "InactiveExitTimestampMonotonic")
		if err != nil {
			return 0, err
		}
		to, err := n.since(ctx, unit, "ActiveEnterTimestampMonotonic")
		if err != nil {
			return 0, err
		}
		held += to - from
	}
	return held, nil
}

// ServicesUp returns when the last of the services that a peer needs was up.
// Machines and we share a clock.
func (n *Node) ServicesUp(ctx context.Context) (time.Time, error) {
	var last time.Duration
	for _, unit := range []string{"consul.service", "rabbitmq-server.service", "xivo-confd.service", "xivo-ctid.service", "xivo-mesh.service"} {
		up, err := n.since(ctx, unit, "ActiveEnterTimestampMonotonic")
		if err != nil {
			return time.Time{}, err
		}
		last = max(last, up)
	}
	now, err := monotonic()
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(last - now), nil
}

// since reads a point of time of a unit, on the kernel's monotonic clock.
func (n *Node) since(ctx context.Context, unit, property string) (time.Duration, error) {
	out, err := n.Run(ctx, "systemctl", "show", "--value", "--property="+property, unit)
	if err != nil {
		return 0, err
	}
	µs, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil || µs == 0 {
		return 0, errors.Join(fmt.Errorf("%s: %s of %s is %q", n.Name, property, unit, strings.TrimSpace(out)), err)
	}
	return time.Duration(µs) * time.Microsecond, nil
}

// Row is a line of the table of the mesh.
type Row struct {
	Node, UUID, Version, State string
	Links, Sources             string
}

// Row collects it: the links are federation links that run, the sources those
// that the directory of the default context searches.
func (n *Node) Row(ctx context.Context) (Row, error) {
	s, err := n.Status(ctx)
	if err != nil {
		return Row{}, err
	}
	links, err := n.Links(ctx)
	if err != nil {
		return Row{}, err
	}
	running := 0
	for _, state := range links {
		if state == "running" {
			running++
		}
	}
	sources, err := n.SQL(ctx, "SELECT directories FROM cticontexts WHERE name = 'default'")
	if err != nil {
		return Row{}, err
	}
	return Row{
		Node: s.Identity.Hostname, UUID: s.Identity.UUID, Version: s.Version, State: s.State,
		Links:   fmt.Sprintf("%d/%d running", running, len(links)),
		Sources: sources,
	}, nil
}

// Links are the federation links of the node's broker and their states.
func (n *Node) Links(ctx context.Context) (map[string]string, error) {
	out, err := n.Run(ctx, "curl", "--silent", "--show-error", "--fail", "--user", "guest:guest", "http://127.0.0.1:15672/api/federation-links")
	if err != nil {
		return nil, err
	}
	var links []struct{ Upstream, Status string }
	if err := json.NewDecoder(bytes.NewBufferString(out)).Decode(&links); err != nil {
		return nil, fmt.Errorf("%s: federation links: %w", n.Name, err)
	}
	states := map[string]string{}
	for _, l := range links {
		states[l.Upstream] = l.Status
	}
	return states, nil
}
