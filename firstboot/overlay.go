package firstboot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// OverlayAddress is the unit that Consul and RabbitMQ start after: the node's address in
// the mesh's own network, from files of ours only, and the firewall. Who keeps no address
// has nothing to do. That the rest of the machine cannot be read, or the firewall not be
// set, takes nobody's address; in a network that an operator brought, that is his to give.
func (m Machine) OverlayAddress(ctx context.Context) error {
	a, err := overlay.ReadAddress((&platform.Platform{Root: m.Root}).Path(node.MeshDir))
	if err != nil {
		kept, ok := m.consulsAddress()
		switch {
		case ok:
			m.Log.Error("overlay: Consul has the address that it listens at, and nothing else works before this is mended", "error", err)
			a = kept
		case errors.Is(err, fs.ErrNotExist):
			m.Log.Info("overlay: this machine has no address there")
			return nil
		default:
			return err
		}
	}
	if a.Range.IsValid() {
		if err := engine.Ensure(ctx, overlay.Addressed(a)); err != nil {
			return err
		}
	}
	n, err := m.Open()
	if err != nil {
		return fmt.Errorf("the address is set, and the firewall is not: %w", err)
	}
	defer n.Close()
	if n.Config() == nil {
		return fmt.Errorf("the address is set, and the firewall is not: there is no document: %w", cmp.Or(n.Document.Err, n.Document.Missing))
	}
	if node.WantsFirewall(n) != "" {
		return nil
	}
	return engine.Ensure(ctx, n.Firewall())
}

// consulsAddress is where this machine's Consul listens in the mesh's network, for when
// the node's own record of it is lost: telephony needs a Consul that starts. It is
// Consul's user's file, and nothing outside of the document's range is believed.
func (m Machine) consulsAddress() (overlay.Address, bool) {
	n, err := m.Open()
	if err != nil {
		return overlay.Address{}, false
	}
	defer n.Close()
	if n.Journal == nil || n.Config() == nil || !n.OwnNetwork() {
		return overlay.Address{}, false
	}
	in := n.Config().Network.Range
	a, ok := consul.BindAddress(n.Platform)
	return overlay.Address{Range: in, Address: a, UUID: n.Identity().UUID}, ok && in.Contains(a)
}

// ErrNoOverlay is that this machine has no part in a mesh's network, and why.
var ErrNoOverlay = errors.New("overlay: nothing to run")

// Overlay runs the service of the mesh's network until ctx ends. A machine that may be a copy
// has its original's key, and stays out.
func (m Machine) Overlay(ctx context.Context) error {
	n, err := m.Open()
	if err != nil {
		return err
	}
	defer n.Close()
	switch action, why := n.Decide(false); {
	case n.Journal == nil || !n.Journal.Became():
		return fmt.Errorf("%w: this machine has not become a node", ErrNoOverlay)
	case action == node.InDoubt, action == node.TakeOn:
		// Not itself yet: the key is its original's.
		return fmt.Errorf("%w: %s", ErrNoOverlay, why)
	case n.Config() == nil:
		return fmt.Errorf("overlay: there is no document: %w", cmp.Or(n.Document.Err, n.Document.Missing))
	}
	config, err := n.OverlayService()
	if err != nil {
		return err
	}
	s, err := overlay.New(config)
	if err != nil {
		return err
	}
	all, ctx := errgroup.WithContext(ctx)
	all.Go(func() error { return s.Run(ctx) })
	all.Go(func() error { return s.Control(ctx, n.OverlaySocket()) })
	return all.Wait()
}
