package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/firewall"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

// HasOverlay says that the mesh of this node has a network of its own.
func (n *Node) HasOverlay() bool {
	return n.Config() != nil && n.Config().Network.Mode == cloudinit.NetworkOverlay
}

// OnOverlay is HasOverlay for a step.
func OnOverlay(n *Node) engine.Skip {
	if n.HasOverlay() {
		return ""
	}
	return "the mesh has no network of its own"
}

// Address is the IPv4 address at which the other members reach this node. In a network
// of its own, a node that has none yet tells the one that it draws first.
func (n *Node) Address() string {
	if !n.HasOverlay() {
		return n.Identity().Advertise
	}
	a, err := n.OverlayAddress()
	if err != nil {
		return ""
	}
	return a.Address.String()
}

// OverlayAddress is this node's address in the overlay: that which it keeps, or what it
// draws first where it keeps none of its own.
func (n *Node) OverlayAddress() (overlay.Address, error) {
	kept, err := n.KeptOverlayAddress()
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return kept, err
	}
	return overlay.Draw(n.Identity().UUID, n.Config().Network.Range)
}

// KeptOverlayAddress is the one that it keeps for life. There is none (fs.ErrNotExist)
// before it became; that of another UUID is the original's of a copy.
func (n *Node) KeptOverlayAddress() (overlay.Address, error) {
	a, err := overlay.ReadAddress(n.Platform.Path(MeshDir))
	if err == nil && a.UUID != n.Identity().UUID {
		return overlay.Address{}, fmt.Errorf("the overlay address is that of %s: %w", a.UUID, fs.ErrNotExist)
	}
	return a, err
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
			for _, name := range []string{overlay.KeyFile, overlay.StateFile, overlay.AddressFile} {
				if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		return own.Apply(ctx)
	})
}

// Overlay asks the service of the overlay.
func (n *Node) Overlay() overlay.Remote {
	return overlay.Remote{Socket: n.Platform.Path(overlaySocket)}
}

// OverlaySocket is where that service is to listen.
func (n *Node) OverlaySocket() string { return n.Platform.Path(overlaySocket) }

func (n *Node) overlayRoot() overlay.Root {
	return overlay.Root(n.Credentials().Derive("overlay", len(overlay.Root{})))
}

func (n *Node) terms() overlay.Terms {
	return overlay.Terms{Mode: overlay.ModeOverlay, Range: n.Config().Network.Range}
}

// helloTime is how long the hellos of become may take, all together.
const helloTime = 30 * time.Second

// TakeOverlayAddress draws this node's address, says hello with it to the peers of the
// document, and keeps the one with which the mesh let it in. That nobody answers, or
// that the mesh refuses this node, is no error: the service says hello again and again,
// and its status tells a refusal. Who keeps an address keeps it for life.
func (n *Node) TakeOverlayAddress(ctx context.Context) error {
	if _, err := n.KeptOverlayAddress(); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir := n.Platform.Path(MeshDir)
	key, err := overlay.ReadKey(dir)
	if err != nil {
		return err
	}
	address, err := n.OverlayAddress()
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
		Root: n.overlayRoot(), Key: key, Address: address, Terms: n.terms(), Draw: true, Port: n.Config().Network.Port,
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
	return address.Save(dir)
}

// OverlayService is what the service of this node is made of. It is an error where the
// node never became.
func (n *Node) OverlayService() (overlay.Config, error) {
	dir := n.Platform.Path(MeshDir)
	address, err := n.KeptOverlayAddress()
	if err != nil {
		return overlay.Config{}, err
	}
	key, err := overlay.ReadKey(dir)
	if err != nil {
		return overlay.Config{}, err
	}
	m, err := n.Membership()
	if err != nil {
		return overlay.Config{}, err
	}
	id := n.Identity()
	return overlay.Config{
		Dir: dir, Root: n.overlayRoot(), Key: key, Address: address, Mode: overlay.ModeOverlay, Port: n.Config().Network.Port,
		UUID: id.UUID, Host: id.Hostname, Version: n.Platform.Version.String(), Boot: n.Platform.BootID(), Registered: m.Registrations,
		Peers: n.Config().Peers, Advertise: n.advertised(), Log: n.Log,
	}, nil
}

// advertised is the endpoint that the document adds to those which the machine has.
func (n *Node) advertised() []netip.AddrPort {
	a, err := netip.ParseAddr(n.Config().Advertise.Address)
	if err != nil {
		return nil
	}
	return []netip.AddrPort{netip.AddrPortFrom(a, uint16(n.Config().Network.Port))}
}

// MemberOf is a member of the overlay as the steps of converge know members.
func (n *Node) MemberOf(o overlay.Member) mesh.Member {
	return mesh.Member{
		UUID: o.UUID, Host: o.Host, Name: identity.NodeName(o.Host, o.UUID), Address: o.Address.String(),
		Version: o.Version, KeyID: n.Credentials().KeyID(),
	}
}

// OverlayGround is what this machine has of the overlay also while the service is down:
// the address, no other way to the range, and, unless the document switches it off, the
// firewall's chains. Consul and the broker work on it.
func (n *Node) OverlayGround() (engine.Resource, error) {
	a, err := n.OverlayAddress()
	if err != nil {
		return nil, err
	}
	ground := engine.All{overlay.Addressed(a)}
	if n.Config().Firewall.Enabled {
		ground = append(ground, firewall.Static(firewall.Network{Interface: overlay.Interface, Range: a.Range}, firewall.Doors{
			Allow:        n.Config().Firewall.Allow,
			MetadataOpen: n.Config().Firewall.Metadata == cloudinit.MetadataOpen,
		}))
	}
	return ground, nil
}
