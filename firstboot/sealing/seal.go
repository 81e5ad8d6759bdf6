package sealing

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/manifest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
)

// bootWait is how long a machine that Packer has just reached may go on booting.
const bootWait = 5 * time.Minute

// Options are a person's choices.
type Options struct {
	AllowConfigured bool
	// Enable names the only operations to do, all when it is empty; Disable names
	// operations to leave out of those.
	Enable, Disable []string
	// Version is this program's.
	Version string
	// KeepValues gets what is this machine's own before anything is taken out. Nil:
	// nobody wants to search the image for it.
	KeepValues func(remains.Values) error
}

// check refuses names of no operation, and a choice with which clones would lack
// what is taken out.
func (o Options) check() error {
	all := AllOperations()
	for _, name := range slices.Concat(o.Enable, o.Disable) {
		if !slices.ContainsFunc(all, func(op Operation) bool { return op.Name == name }) {
			return fmt.Errorf("seal: there is no operation %q: see `xivo-firstboot seal --list`", name)
		}
	}
	missing := o.missingForClones()
	for _, op := range all {
		switch {
		case o.disabled(op.Name):
		case op.Needs != "" && o.disabled(op.Needs):
			return fmt.Errorf("seal: without %s, what %s takes out would be lost: do both, or leave out both", op.Needs, op.Name)
		case op.Counterpart.Step != "" && missing != "":
			return fmt.Errorf("seal: without %s, no clone would get its own of what %s takes out: do both, or leave out both", missing, op.Name)
		}
	}
	return nil
}

// missingForClones is an operation that is left out, and without which no clone
// becomes.
func (o Options) missingForClones() string {
	for _, op := range AllOperations() {
		if op.NeededByClones && o.disabled(op.Name) {
			return op.Name
		}
	}
	return ""
}

func (o Options) disabled(operation string) bool {
	return len(o.Enable) > 0 && !slices.Contains(o.Enable, operation) || slices.Contains(o.Disable, operation)
}

// checkMachine refuses a machine whose clones would be of no use.
func (o Options) checkMachine(ctx context.Context, n *node.Node) error {
	// What is not proved again would no longer count, and no clone would become.
	if missing := o.missingForClones(); missing != "" && n.Seal.Sealed() {
		return fmt.Errorf("this machine was sealed before, so %s cannot be left out", missing)
	}
	// What the boot has still to start would write where the seal was already.
	booted, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	if err := n.Platform.WaitBooted(booted); err != nil {
		return err
	}
	if err := databaseStarted(ctx, n); err != nil {
		return err
	}
	if err := n.CheckSchema(ctx); err != nil {
		return err
	}
	if !n.Platform.HasSystemd() {
		return errors.New("without systemd a clone of this machine would never become a node: bake from Debian 8 (XiVO 15.20) or later; a running XiVO 15.19 becomes a node with `identity: keep` and `xivo-firstboot run`")
	}
	passed, err := n.WizardPassed(ctx)
	if err != nil {
		return err
	}
	if passed && !o.AllowConfigured {
		return errors.New("this XiVO has passed its wizard, so its IP is in netiface, provd and DHCP, and a clone would carry it; seal before the wizard, or say --allow-configured")
	}
	return nil
}

// Seal takes every identity out of this machine, proves it, and writes the
// manifest. Sealing again goes through the same operations; the manifest keeps
// what an earlier seal took out.
func Seal(ctx context.Context, n *node.Node, o Options) (*manifest.Manifest, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := o.begin(ctx, n); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	m := &manifest.Manifest{Format: manifest.Format, At: time.Now().UTC(), Firstboot: o.Version, XiVO: n.Platform.Version.String(), Files: map[string]string{}}
	var err error
	if m.Operations, err = o.run(ctx, n, Operations()); err != nil {
		return nil, err
	}
	if n.Seal.Manifest != nil {
		m.Keep(n.Seal.Manifest)
	}
	if m.Proved(installStep) {
		for _, path := range installedFiles() {
			if m.Files[path], err = n.Sum(path); err != nil {
				return nil, fmt.Errorf("seal: %w", err)
			}
		}
	}
	if m.KV, err = n.Sum(kvexport.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return m, n.WriteState(node.ManifestFile, m)
}

// begin is all that comes before anything is taken out.
func (o Options) begin(ctx context.Context, n *node.Node) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := o.checkMachine(ctx, n); err != nil || o.KeepValues == nil {
		return err
	}
	values, err := Values(ctx, n)
	if err != nil {
		return err
	}
	return o.KeepValues(values)
}

// Last ends a seal, and says so in the manifest that stays in the image.
func Last(ctx context.Context, n *node.Node, o Options) error {
	if err := o.check(); err != nil {
		return err
	}
	m := n.Seal.Manifest
	if m == nil {
		return errors.Join(errors.New("seal: there is no seal to end: run `xivo-firstboot seal` first"), n.Seal.Err)
	}
	last, err := o.run(ctx, n, LastOperations())
	if err != nil {
		return err
	}
	m.Operations = slices.DeleteFunc(m.Operations, func(op manifest.Operation) bool {
		return slices.ContainsFunc(last, func(now manifest.Operation) bool { return now.Name == op.Name })
	})
	m.Operations = append(m.Operations, last...)
	return n.WriteState(node.ManifestFile, m)
}

// run does the operations that a person wants and that apply, each with its proof.
func (o Options) run(ctx context.Context, n *node.Node, operations []Operation) ([]manifest.Operation, error) {
	var did []manifest.Operation
	p := phase(operations)
	for i, op := range operations {
		line := manifest.Operation{Name: op.Name, Text: op.Text, Counterpart: op.Counterpart.String(), Disabled: o.disabled(op.Name)}
		if !line.Disabled {
			e := n.Runner().Step(ctx, p, i)
			if e.Err != nil {
				return nil, fmt.Errorf("seal: %w", e.Err)
			}
			line.Removed, line.Skipped = e.Changes, string(e.Skipped)
		}
		did = append(did, line)
	}
	return did, nil
}

// Verify compares a sealed image with its manifest, before anything of it is
// changed. What would lose data is an error; what somebody may have changed on
// purpose since, in the image or in its copy, is told.
func Verify(n *node.Node) error {
	m := n.Seal.Manifest
	if m == nil || n.Seal.Err != nil {
		return n.Seal.Err
	}
	if m.KV != "" && !n.WorkedSinceSeal() {
		have, err := n.Sum(kvexport.File)
		if err != nil {
			return fmt.Errorf("seal manifest: the export of Consul's KV cannot be read: %w", err)
		}
		if have != m.KV {
			return fmt.Errorf("seal manifest: %s is not the export that the seal made: nothing was changed; copy the image anew", kvexport.File)
		}
	}
	if v := n.Platform.Version.String(); v != m.XiVO {
		n.Log.Warn("XiVO was upgraded in the image after the seal", "sealed", m.XiVO, "now", v)
	}
	for _, path := range slices.Sorted(maps.Keys(m.Files)) {
		if have, err := n.Sum(path); err != nil || have != m.Files[path] {
			n.Log.Warn("a file is not as the seal installed it", "file", path)
		}
	}
	for _, op := range LastOperations() {
		// One that did not apply to the machine was looked at.
		if !m.Proved(op.Name) && m.Skipped(op.Name) == "" {
			n.Log.Warn("the seal was not ended, so this image may have keys that other machines have, or what was deleted in it", "operation", op.Name)
		}
	}
	return nil
}
