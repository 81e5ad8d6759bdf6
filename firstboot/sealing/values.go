package sealing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
)

// exportOfNobody is an export that holds no token with which somebody is logged in.
func exportOfNobody(n *node.Node) engine.Resource {
	return consul.ExportWithout(n.Platform.Path(kvexport.File), kvexport.LiveTokens)
}

// Values are what this machine has that is its own, and that no image of it may hold:
// what a seal put there instead is none of them, nor what every XiVO has. It asks the
// database, and Consul where it runs.
func Values(ctx context.Context, n *node.Node) (remains.Values, error) {
	var v remains.Values
	add := func(name, text string) {
		switch strings.TrimSpace(text) {
		case placeholderUUID.String(), strings.ReplaceAll(placeholderUUID.String(), "-", ""), placeholderToken, everyXiVOsPassword:
		default:
			v.Add(name, text)
		}
	}
	db, err := n.Servers.DB(ctx)
	if err != nil {
		return v, err
	}
	if err := identity.Secrets(ctx, db, n.Platform, add); err != nil {
		return v, fmt.Errorf("what is this machine's own: %w", err)
	}
	if err := consul.Secrets(n.Platform, add); err != nil {
		return v, fmt.Errorf("what is this machine's own: %w", err)
	}
	if err := addLiveTokens(ctx, n, add); err != nil {
		return v, fmt.Errorf("what is this machine's own: %w", err)
	}
	if n.Config() != nil {
		c := n.Credentials()
		add("the secret of the mesh", n.Config().Secret.Reveal())
		add("the mesh's password at brokers", c.BrokerPassword().Reveal())
		add("the mesh's password at directories", c.DirectoryPassword().Reveal())
		add("the mesh's gossip key", c.GossipKey().Reveal())
	}
	key, err := files.ReadFile(n.Platform.Path(node.MeshDir, overlay.KeyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return v, fmt.Errorf("what is this machine's own: %w", err)
	}
	add("this node's key in the mesh's network", string(key))
	return v, nil
}

// everyXiVOsPassword is the same everywhere, as XiVO's documentation has it.
const everyXiVOsPassword = "proformatique"

// addLiveTokens asks Consul where it runs: at rest, it would have to be started for
// what is valid for two hours.
func addLiveTokens(ctx context.Context, n *node.Node, add func(name, text string)) error {
	runs, err := n.Platform.Init.Active(ctx, n.Platform.Service(platform.Consul))
	if err != nil || !runs {
		return err
	}
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return err
	}
	tokens, err := c.Names(ctx, kvexport.LiveTokens+"tokens/")
	for _, token := range tokens {
		// Not what is no token: a name could stand anywhere.
		if _, err := uuid.Parse(token); err == nil {
			add("a token of somebody who was logged in", token)
		}
	}
	return err
}
