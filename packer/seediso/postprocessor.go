// Package seediso is the Packer post-processor xivo-seed. It writes a NoCloud
// seed for each node that is to be cloned from an image, and says how to boot
// it.
package seediso

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/diskimage"
)

// PostProcessor is the Packer post-processor.
type PostProcessor struct {
	config Config
}

var _ packersdk.PostProcessor = (*PostProcessor)(nil)

// ConfigSpec describes the configuration to Packer.
func (p *PostProcessor) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Configure checks the configuration.
func (p *PostProcessor) Configure(raws ...any) error { return p.config.Prepare(raws...) }

// PostProcess writes the seeds, each complete or not at all, and hands the
// artifact on. Packer keeps the artifact whatever keep_input_artifact says, since
// the clones boot from its image. An error may leave seeds of earlier nodes.
func (p *PostProcessor) PostProcess(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) (_ packersdk.Artifact, keep, forceKeep bool, err error) {
	if err := p.config.writeSeeds(ctx, ui, artifact); err != nil {
		return nil, false, false, fmt.Errorf("xivo-seed: %w", err)
	}
	return artifact, true, true, nil
}

// writeSeeds writes the seed of each node, and shows how to boot the node.
func (c *Config) writeSeeds(ctx context.Context, ui packersdk.Ui, artifact packersdk.Artifact) error {
	nodes, err := c.seeds()
	if err != nil {
		return err
	}
	image, found, err := c.disk(artifact)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	dir, err := filepath.Abs(c.OutputDirectory)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("output_directory: %w", err)
	}

	for _, node := range nodes {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := filepath.Join(dir, strings.ToLower(node.Hostname)+".iso")
		if err := writeImage(name, node); err != nil {
			return err
		}
		ui.Say(fmt.Sprintf("%s: its seed is %s (instance id %s)", node.Hostname, name, node.InstanceID))
		if found {
			newClone(node.Hostname, node.InstanceID, name, c.Bridge, image).show(ui)
		}
	}
	if !found {
		ui.Say("There is no disk image here: give each machine its seed as a disk or CD-ROM")
	}
	return nil
}

// disk is the image of the command lines, if there is one.
func (c *Config) disk(artifact packersdk.Artifact) (_ disk, found bool, err error) {
	if c.Image == "" {
		d, found := findDisk(artifact)
		return d, found, nil
	}
	d, err := openDisk(c.Image)
	if err == nil && d.format == diskimage.Unknown {
		err = fmt.Errorf("%s is neither a qcow2 image nor a disk with a boot sector", c.Image)
	}
	return d, err == nil, err
}
