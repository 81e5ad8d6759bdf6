package converge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// View is what one look saw of this node and its mesh. A part that could not be
// seen has its error, and the others stand.
type View struct {
	At time.Time
	// Trusted is as late as it can be now: the latest of the clock and of times that
	// this machine was given or wrote before. What others tell is measured by it.
	Trusted time.Time
	// FirstPass is when the first pass of this boot was made.
	FirstPass time.Time
	Self      mesh.Member
	Document  *cloudinit.Config
	Joinable  bool
	Marks     Marks
	// Known are the members on this node's disk.
	Known []mesh.Member
	Peers Peers

	Overlay   Overlay
	WAN       WAN
	Broker    Broker
	Directory Directory
	// Settings are notices on what this machine and XiVO are set to.
	Settings    []string
	SettingsErr error
}

// Peers are the peers of the document.
type Peers struct {
	// Addresses are those that resolve and are not this node.
	Addresses []string
	// Err is why some could not be resolved.
	Err error
	// Hub is the address of the document's hub, as members have it; HubErr why it
	// could not be resolved.
	Hub    string
	HubErr error
}

// Named says that the document names a peer that is not this node, or may do so.
func (p Peers) Named() bool { return len(p.Addresses) > 0 || p.Err != nil }

// WAN is what Consul tells of the other nodes.
type WAN struct {
	Err error
	// Notes are what others left for this node.
	Notes Notes
	// Living are its living members, this node not counted; Answers are what each of
	// them says of itself, in the same order. A node that keeps out asks nobody.
	Living  []consul.Member
	Answers []Answer
	// SilentSince is since when those have not answered that do not, by address.
	SilentSince map[string]time.Time
}

// Answer is what a datacenter of the WAN says.
type Answer struct {
	// Members is the one whose datacenter it is. Who tells of more is believed of
	// none: one node must not make others appear.
	Members  []mesh.Member
	Departed mesh.Departures
	Err      error
}

// Notes are what nodes leave for each other in a datacenter's KV.
type Notes struct {
	// Departed are the nodes that left or were forgotten.
	Departed mesh.Departures
	// Refusals are by whom this node was refused, and why.
	Refusals map[string]Refusal
}

// Refusal is what a member leaves with a node that it refuses.
type Refusal struct {
	Reason  string `json:"reason"`
	Version string `json:"version"` // that was refused
}

// Broker is what federation has.
type Broker struct {
	Err       error
	Upstreams []rabbitmq.FoundUpstream
	Links     map[string]rabbitmq.Link
	// HostsByAddress are the hosts of upstreams that an operator made, by the address to
	// which they lead.
	HostsByAddress map[string][]string
}

// Directory is the directory sources that there are.
type Directory struct {
	Err     error
	Sources []directory.Found
	// HostsByAddress is as in Broker.
	HostsByAddress map[string][]string
}

const (
	// departedNotes: a UUID, and when that node left or was forgotten.
	departedNotes = node.NotesPrefix + "gone/"
	// refusedNotes: a member that refused this node, and why.
	refusedNotes = node.NotesPrefix + "refused/"

	// askWait is how long a datacenter may take to say who it is.
	askWait = 2 * time.Second
	// firstAskWait is how long a node without members waits: those that have not
	// asked it yet do not let it in.
	firstAskWait = time.Second
)

// observe looks once. Each server gets limit; a server that is down is asked once.
// The error is one with which no pass can be made.
func observe(ctx context.Context, n *node.Node, m *Memory, limit time.Duration) (*View, error) {
	n.Servers.Redial()
	before := ReadStatus(ctx, n)
	v := &View{
		At:        time.Now().UTC(),
		FirstPass: before.FirstPass,
		Self:      n.Self(),
		Document:  n.Config(),
		Joinable:  n.Platform.Traits.Joinable,
	}
	if before.Boot != n.Platform.BootID() {
		v.FirstPass = v.At
	}
	v.Trusted = n.Trusted(v.At, before.At)
	v.Marks = readMarks(n)
	// Not to know the members is no reason to remove them.
	if err := n.ReadState(node.MembersFile, &v.Known); err != nil {
		return nil, err
	}
	v.Peers.Addresses, v.Peers.Err = node.OtherAddresses(ctx, v.Document.Peers)
	v.Settings, v.SettingsErr = bounded(ctx, limit, func(ctx context.Context) ([]string, error) { return settings(ctx, n) })
	if !v.Joinable {
		return v, nil
	}
	if n.HasOverlay() {
		v.Overlay.observe(ctx, n)
	}
	v.Peers.Hub, v.Peers.HubErr = hub(ctx, v)
	if n.HasOverlay() && v.Peers.Hub != "" && v.Peers.HubErr == nil {
		v.Peers.Hub, v.Peers.HubErr = hubMember(v, v.Peers.Hub)
	}
	_, v.WAN.Err = bounded(ctx, limit, func(ctx context.Context) (any, error) { return nil, v.WAN.observe(ctx, n, m, v) })
	_, v.Broker.Err = bounded(ctx, limit, func(ctx context.Context) (any, error) { return nil, v.Broker.observe(ctx, n, m) })
	_, v.Directory.Err = bounded(ctx, limit, func(ctx context.Context) (any, error) { return nil, v.Directory.observe(ctx, n, m) })
	return v, nil
}

// bounded looks for a limited time.
func bounded[T any](ctx context.Context, limit time.Duration, look func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return look(ctx)
}

func (w *WAN) observe(ctx context.Context, n *node.Node, m *Memory, v *View) error {
	w.Notes, w.SilentSince = m.notes, m.silentSince // as long as it is not known better
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return err
	}
	if n.HasOverlay() {
		w.Living, err = livingOthers(ctx, c, v.Self.Name)
		return err
	}
	notes, err := readNotes(ctx, n, c)
	if err != nil {
		return err
	}
	w.Notes, m.notes = notes, notes
	if w.Living, err = livingOthers(ctx, c, v.Self.Name); err != nil {
		return err
	}
	w.SilentSince = map[string]time.Time{}
	if v.keepsOut() != "" {
		m.silentSince = nil // nobody is asked
		return nil
	}
	w.Answers = make([]Answer, len(w.Living))
	wait := askWait
	if len(v.Known) == 0 {
		wait = firstAskWait
	}
	var asked sync.WaitGroup
	for i, member := range w.Living {
		asked.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, wait)
			defer cancel()
			w.Answers[i] = ask(ctx, n, c, member)
		})
	}
	asked.Wait()

	for i, member := range w.Living {
		if w.Answers[i].Err == nil {
			continue
		}
		n.Log.Debug("a WAN member does not answer", "member", member.Name, "error", w.Answers[i].Err)
		w.SilentSince[member.Address] = v.At
		if since, ok := m.silentSince[member.Address]; ok {
			w.SilentSince[member.Address] = since
		}
	}
	m.silentSince = w.SilentSince
	return nil
}

// livingOthers are the living members of the WAN that are not this node.
func livingOthers(ctx context.Context, c *consul.Client, self string) ([]consul.Member, error) {
	wan, err := c.WANMembers(ctx)
	return slices.DeleteFunc(wan, func(w consul.Member) bool { return !w.Alive || w.Datacenter == self }), err
}

// ask asks a datacenter who it is, and who left as far as it knows.
func ask(ctx context.Context, n *node.Node, c *consul.Client, w consul.Member) (a Answer) {
	var found []consul.Registration
	if found, a.Err = c.Services(ctx, w.Datacenter, mesh.ServiceName); a.Err != nil {
		return a
	}
	// Each node has one; see Answer.
	if len(found) > 1 {
		n.Log.Warn("a member tells of others beside itself, and is not believed", "member", w.Name, "registrations", len(found))
		found = found[:2]
	}
	for _, r := range found {
		m, err := mesh.ParseMember(w.Datacenter, r.Address, r.Tags)
		if err != nil {
			n.Log.Warn("a member's registration is unusable", "member", w.Name, "error", err)
			continue
		}
		a.Members = append(a.Members, m)
	}
	var notes map[string]string
	if notes, a.Err = c.Notes(ctx, w.Datacenter, departedNotes); a.Err == nil {
		a.Departed = parseDeparted(notes, "")
	}
	return a
}

// readNotes reads what others left here. A note that is damaged counts for nothing,
// and is told: whoever wrote it must not stop this node.
func readNotes(ctx context.Context, n *node.Node, c *consul.Client) (Notes, error) {
	texts, err := c.Notes(ctx, "", node.NotesPrefix)
	if err != nil {
		return Notes{}, err
	}
	notes, damaged := parseNotes(texts)
	if damaged != nil {
		n.Log.Warn("a note in Consul's KV is not taken", "error", damaged)
	}
	return notes, nil
}

// parseNotes returns those that can be read, and what is wrong with the others.
func parseNotes(texts map[string]string) (notes Notes, damaged error) {
	notes = Notes{Departed: parseDeparted(texts, "gone/"), Refusals: map[string]Refusal{}}
	for key, text := range texts {
		by, ok := strings.CutPrefix(key, "refused/")
		if !ok {
			continue
		}
		var r Refusal
		if err := json.Unmarshal([]byte(text), &r); err != nil {
			damaged = errors.Join(damaged, fmt.Errorf("the refusal of %s: %w", by, err))
			continue
		}
		notes.Refusals[by] = r
	}
	return notes, damaged
}

// parseDeparted reads notes strictly: one that does not tell a UUID and a time
// takes nobody out.
func parseDeparted(texts map[string]string, prefix string) mesh.Departures {
	departed := mesh.Departures{}
	for key, text := range texts {
		id, err := uuid.Parse(strings.TrimPrefix(key, prefix))
		if err != nil || !strings.HasPrefix(key, prefix) {
			continue
		}
		if at, err := mesh.ParseTime(text); err == nil {
			departed[id] = at
		}
	}
	return departed
}

func (b *Broker) observe(ctx context.Context, n *node.Node, m *Memory) error {
	client, err := n.Servers.Broker(ctx)
	if err != nil {
		return err
	}
	if b.Upstreams, err = client.Upstreams(ctx); err != nil {
		return err
	}
	if b.Links, err = client.Links(ctx); err != nil {
		return err
	}
	var hosts []string
	for _, u := range b.Upstreams {
		if !directory.OfMesh(u.Name) {
			hosts = append(hosts, u.Hosts...)
		}
	}
	b.HostsByAddress = m.hostsByAddress(ctx, hosts)
	return nil
}

func (d *Directory) observe(ctx context.Context, n *node.Node, m *Memory) error {
	db, err := n.Servers.DB(ctx)
	if err != nil {
		return err
	}
	if d.Sources, err = directory.Sources(ctx, db); err != nil {
		return err
	}
	var hosts []string
	for _, s := range d.Sources {
		if !s.OfMesh {
			hosts = append(hosts, s.Address)
		}
	}
	d.HostsByAddress = m.hostsByAddress(ctx, hosts)
	return nil
}

// hub is the address of the document's hub, as members have it.
func hub(ctx context.Context, v *View) (string, error) {
	named := v.Document.Hub
	if _, err := netip.ParseAddr(named); err == nil || named == "" {
		return named, nil
	}
	addresses, err := node.OtherAddresses(ctx, []string{named})
	switch {
	case err != nil:
		return "", fmt.Errorf("the hub: %w", err)
	case len(addresses) == 0:
		return v.Self.Address, nil // the name is our own
	}
	return addresses[0], nil
}
