package converge

import (
	"context"
	"fmt"
	"slices"
	"time"

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
	// Hub is the address to which the document's hub leads: outside the mesh, in it, or
	// this node's own in it where it is the hub. HubErr is why that is not known.
	Hub    string
	HubErr error
}

// Named says that the document names a peer that is not this node, or may do so.
func (p Peers) Named() bool { return len(p.Addresses) > 0 || p.Err != nil }

// WAN is what Consul tells of the other nodes.
type WAN struct {
	Err error
	// Living are its living members, this node not counted.
	Living []consul.Member
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
	v.Overlay.observe(ctx, n)
	v.Peers.Hub, v.Peers.HubErr = hub(ctx, v)
	_, v.WAN.Err = bounded(ctx, limit, func(ctx context.Context) (any, error) { return nil, v.WAN.observe(ctx, n, v.Self.Name) })
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

func (w *WAN) observe(ctx context.Context, n *node.Node, self string) error {
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return err
	}
	w.Living, err = livingOthers(ctx, c, self)
	return err
}

// livingOthers are the living members of the WAN that are not this node.
func livingOthers(ctx context.Context, c *consul.Client, self string) ([]consul.Member, error) {
	wan, err := c.WANMembers(ctx)
	return slices.DeleteFunc(wan, func(w consul.Member) bool { return !w.Alive || w.Datacenter == self }), err
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

// hub is the address to which the document's hub leads.
func hub(ctx context.Context, v *View) (string, error) {
	named := v.Document.Hub
	if named == "" || named == v.Self.Address {
		return named, nil
	}
	addresses, err := node.OtherAddresses(ctx, []string{named})
	switch {
	case err != nil:
		return "", fmt.Errorf("the hub: %w", err)
	case len(addresses) == 0:
		return v.Self.Address, nil // it is our own
	}
	return addresses[0], nil
}
