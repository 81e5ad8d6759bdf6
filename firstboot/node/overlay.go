package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/localnet"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// OwnNetwork says that the mesh has a network of its own, and false where its nodes are
// in one that an operator brought.
func (n *Node) OwnNetwork() bool { return n.Config().Network.Mode == cloudinit.NetworkOverlay }

// InOwnNetwork is OwnNetwork for a step.
func InOwnNetwork(n *Node) engine.Skip {
	if n.OwnNetwork() {
		return ""
	}
	return engine.Skip("the mesh is in the network that " + n.Config().Network.Interface + " leads to, and has none of its own")
}

// Address is the IPv4 address at which the other members reach this node. In a network
// of its own, a node that has none yet tells the one that it draws first.
func (n *Node) Address() string {
	a, err := n.NetworkAddress()
	if err != nil {
		return ""
	}
	return a.Address.String()
}

// NetworkAddress is this node's address in the mesh's network: that which it keeps, or,
// where it keeps none of its own, what it draws first, or has on the interface.
func (n *Node) NetworkAddress() (overlay.Address, error) {
	kept, err := n.KeptAddress()
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	now, cancel := context.WithCancel(context.Background())
	cancel() // wait for no interface
	return n.firstAddress(now)
}

// firstAddress is that of a node which keeps none.
func (n *Node) firstAddress(ctx context.Context) (overlay.Address, error) {
	if n.Config() == nil {
		return overlay.Address{}, errors.New("network: there is no document that says what the mesh has")
	}
	network := n.Config().Network
	if n.OwnNetwork() {
		taken, err := n.Taken()
		if err != nil {
			return overlay.Address{}, err
		}
		return overlay.Draw(n.Identity().UUID, network.Range, taken...)
	}
	a, err := addressOn(ctx, network.Interface, n.Config().Advertise.Address)
	return overlay.Address{Address: a, UUID: n.Identity().UUID}, err
}

// Taken are addresses that others have; with any, this node's own is one of them.
func (n *Node) Taken() (taken []netip.Addr, err error) {
	return taken, n.ReadState(TakenFile, &taken)
}

// KeptAddress is the one that it keeps for life. There is none (fs.ErrNotExist) before
// it became; that of another UUID is the original's of a copy.
func (n *Node) KeptAddress() (overlay.Address, error) {
	a, err := overlay.ReadAddress(n.Platform.Path(MeshDir))
	if err == nil && a.UUID != n.Identity().UUID {
		return overlay.Address{}, fmt.Errorf("the kept address is that of %s: %w", a.UUID, fs.ErrNotExist)
	}
	return a, err
}

// CheckNetwork refuses what the document says of the mesh's network where it does not
// fit this machine: a range that is used here for something else, or an interface behind
// which anybody may be.
func (n *Node) CheckNetwork(ctx context.Context) error {
	network := n.Config().Network
	if !n.OwnNetwork() {
		if _, err := n.firstAddress(ctx); err != nil {
			return err
		}
		shared, err := localnet.DefaultRoute(network.Interface)
		if shared && !network.Shared {
			err = fmt.Errorf("network: %s has the default route, so strangers may be in that network, and most of what the nodes tell each other is not encrypted: leave `network` out, for a network of the mesh's own, or accept that with `shared: true`", network.Interface)
		}
		return err
	}
	var outside []localnet.Outside
	peers, err := OtherAddresses(ctx, n.Config().Peers)
	if err != nil {
		n.Log.Debug("peers that cannot be resolved yet", "error", err)
	}
	for _, p := range peers {
		if a, err := netip.ParseAddr(p); err == nil {
			outside = append(outside, localnet.Outside{Address: a, What: "a peer of the document"})
		}
	}
	return localnet.RangeFree(network.Range, overlay.Interface, outside...)
}

// OverlayKey is that the node has a key of its own there. One beside the address of
// another node is that node's.
func (n *Node) OverlayKey() engine.Resource {
	dir := n.Platform.Path(MeshDir)
	own := overlay.KeyPair(dir)
	foreign := func() bool {
		a, err := overlay.ReadAddress(dir)
		return err == nil && a.UUID != n.Identity().UUID
	}
	return engine.New(func(ctx context.Context) ([]string, error) {
		if foreign() {
			return []string{"this node has no key of its own"}, nil
		}
		return own.Diff(ctx)
	}, func(ctx context.Context) error {
		if foreign() {
			if err := n.RemoveState(MeshDir+"/"+overlay.KeyFile, MeshDir+"/"+overlay.StateFile, MeshDir+"/"+overlay.AddressFile); err != nil {
				return err
			}
		}
		return own.Apply(ctx)
	})
}

// Overlay asks the service of the mesh's network.
func (n *Node) Overlay() overlay.Remote {
	return overlay.Remote{Socket: n.Platform.Path(overlaySocket)}
}

// OverlaySocket is where that service is to listen.
func (n *Node) OverlaySocket() string { return n.Platform.Path(overlaySocket) }

func (n *Node) overlayRoot() overlay.Root {
	return overlay.Root(n.Credentials().Derive("overlay", len(overlay.Root{})))
}

func (n *Node) terms() overlay.Terms {
	if n.OwnNetwork() {
		return overlay.Terms{Mode: overlay.ModeOverlay, Range: n.Config().Network.Range}
	}
	return overlay.Terms{Mode: overlay.ModeDirect}
}

// helloTime is how long the hellos of become may take, all together.
const helloTime = 30 * time.Second

// TakeAddress draws this node's address, or finds it on the interface, says hello with it
// to the peers of the document, and keeps the one with which the mesh let it in. That nobody answers, or
// that the mesh refuses this node, is no error: the service says hello again and again,
// and its status tells a refusal. Who keeps an address keeps it for life.
func (n *Node) TakeAddress(ctx context.Context) error {
	if _, err := n.KeptAddress(); err == nil {
		return n.RemoveState(TakenFile) // of before, where that was cut off
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := n.Platform.Path(MeshDir)
	key, err := overlay.ReadKey(dir)
	if err != nil {
		return err
	}
	address, err := n.firstAddress(ctx)
	if err != nil {
		return err
	}
	m, err := n.Membership()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, helloTime)
	defer cancel()
	welcome, err := overlay.Introduction{
		Root: n.overlayRoot(), Key: key, Address: address, Terms: n.terms(), Draw: n.OwnNetwork(), Port: n.Config().Network.Port,
		Member: overlay.Member{
			UUID: n.Identity().UUID, Host: n.Identity().Hostname, Key: key.Public(),
			Boot: n.Platform.BootID(), Version: n.Platform.Version.String(), Registered: m.Registrations,
		},
	}.Hello(ctx, n.Config().Peers)
	switch refused := (*overlay.Refusal)(nil); {
	case errors.As(err, &refused):
		n.Log.Warn("the mesh does not let this node in; it goes on alone, and asks again", "reason", refused.Reason)
	case err != nil:
		n.Log.Warn("no peer answers yet; this node goes on, and asks again", "error", err)
	}
	if welcome.Address.Address.IsValid() {
		address = welcome.Address
	}
	if err := address.Save(dir); err != nil {
		return err
	}
	return n.RemoveState(TakenFile)
}

// AddressDrawn is that the node keeps an address of its own there, for life.
func (n *Node) AddressDrawn() engine.Resource {
	return engine.New(func(context.Context) ([]string, error) {
		if _, err := n.KeptAddress(); errors.Is(err, fs.ErrNotExist) {
			return []string{"this node has no address in the mesh's network"}, nil
		} else if err != nil {
			return nil, err
		}
		taken, err := n.Taken()
		if len(taken) > 0 {
			return []string{"the note of addresses that are taken is of before"}, err
		}
		return nil, err
	}, n.TakeAddress)
}

// OverlayService is what the service of this node is made of. It is an error where the
// node never became.
func (n *Node) OverlayService() (overlay.Config, error) {
	dir := n.Platform.Path(MeshDir)
	address, err := n.KeptAddress()
	if err != nil {
		return overlay.Config{}, err
	}
	key, err := overlay.ReadKey(dir)
	if err != nil {
		return overlay.Config{}, err
	}
	m, err := n.Membership()
	if err != nil {
		n.Log.Error("how often this node registered is taken from what the service kept", "error", err)
		m.Registrations = 1
	}
	id := n.Identity()
	return overlay.Config{
		Dir: dir, Root: n.overlayRoot(), Key: key, Address: address, Mode: n.terms().Mode, Port: n.Config().Network.Port,
		UUID: id.UUID, Host: id.Hostname, Version: n.Platform.Version.String(), Boot: n.Platform.BootID(), Registered: m.Registrations,
		Peers: n.Config().Peers, Advertise: n.advertised(), Log: n.Log,
	}, nil
}

// advertised are the endpoints that the document names, before those which the machine
// has.
func (n *Node) advertised() (ends []netip.AddrPort) {
	port := uint16(n.Config().Network.Port)
	want := n.Config().Advertise
	if a, err := netip.ParseAddr(want.Address); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a, port)}
	}
	local, err := LocalAddresses()
	if err != nil {
		n.Log.Debug("the addresses of this machine are not known", "error", err)
	}
	for _, a := range slices.SortedFunc(maps.Keys(local), netip.Addr.Compare) {
		if want.Interface != "" && local[a] == want.Interface {
			ends = append(ends, netip.AddrPortFrom(a, port))
		}
	}
	return ends
}

// MemberOf is a member as the steps of converge know members.
func (n *Node) MemberOf(o overlay.Member) mesh.Member {
	m := mesh.Member{
		UUID: o.UUID, Host: o.Host, Name: identity.NodeName(o.Host, o.UUID), Address: o.Address.String(),
		Version: o.Version, KeyID: n.Credentials().KeyID(),
	}
	for _, e := range o.Endpoints {
		if a := e.Addr(); a.Is4() && a != o.Address {
			m.Outside = append(m.Outside, a.String())
		}
	}
	slices.Sort(m.Outside)
	m.Outside = slices.Compact(m.Outside)
	return m
}

// Addressed is what this machine has of the mesh's own network also while its service is
// down: the address, and no other way to the range. Consul and the broker work on it.
func (n *Node) Addressed() (engine.Resource, error) {
	a, err := n.NetworkAddress()
	if err != nil {
		return nil, err
	}
	return overlay.Addressed(a), nil
}

// Firewall closes the mesh's ports to everybody else.
func (n *Node) Firewall() engine.Resource {
	network := firewall.Network{Interface: n.Config().Network.Interface}
	if n.OwnNetwork() {
		network = firewall.Network{Interface: overlay.Interface, Range: n.Config().Network.Range}
	}
	return firewall.Static(network, firewall.Doors{
		Allow:        n.Config().Firewall.Allow,
		MetadataOpen: n.Config().Firewall.Metadata == cloudinit.MetadataOpen,
	})
}

// FirewallGaps are what Firewall cannot guard on this machine, a sentence each.
func (n *Node) FirewallGaps(ctx context.Context) ([]string, error) {
	if WantsFirewall(n) != "" {
		return nil, nil
	}
	return firewall.Gaps(ctx)
}

// WantsFirewall says that the document does not switch it off.
func WantsFirewall(n *Node) engine.Skip {
	if n.Config().Firewall.Enabled {
		return ""
	}
	return "the document switches it off"
}
