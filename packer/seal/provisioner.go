// Package seal is the Packer provisioner xivo-seal. It works with any builder:
// it puts xivo-firstboot into the machine, lets it take every identity out, and
// brings the manifest home. It is the last provisioner of a build.
package seal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/embedded"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/remote"
)

// Places in the machine.
const (
	// privateFolders is what mktemp makes a folder of that is the connection's user's
	// alone: in /tmp itself, any user of the machine could put another binary, or a
	// link, in the place of what is uploaded.
	privateFolders = "/tmp/xivo-seal.XXXXXXXXXX"
	// manifestPath is where `xivo-firstboot seal` keeps what it did.
	manifestPath = platform.StateDir + "/seal.json"
	// valuesPath is in memory: what is written to the disk may be read from the image.
	valuesPath = "/run/xivo-firstboot-values.json"
)

// Provisioner is the Packer provisioner.
type Provisioner struct {
	config Config
}

var _ packersdk.Provisioner = (*Provisioner)(nil)

// ConfigSpec describes the configuration to Packer.
func (p *Provisioner) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Prepare checks the configuration.
func (p *Provisioner) Prepare(raws ...any) error { return p.config.Prepare(raws...) }

// Provision seals the machine. An error means that the machine is not, or not
// wholly, sealed and that no image may be made of it.
func (p *Provisioner) Provision(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, _ map[string]any) error {
	m := &remote.Machine{UI: ui, Communicator: comm, Sudo: p.config.Sudo}

	ui.Say("Installing xivo-firstboot")
	if err := p.install(ctx, m); err != nil {
		return fmt.Errorf("xivo-seal: install xivo-firstboot: %w", err)
	}
	ui.Say("Sealing: every identity is taken out of the machine")
	var values []string
	if p.config.ValuesFile != "" {
		values = []string{"--values", valuesPath}
	}
	if err := m.Run(ctx, p.sealCommand(values...)...); err != nil {
		return fmt.Errorf("xivo-seal: %w (the machine is not sealed: make no image of it)", err)
	}
	// Before the next command: that one removes the keys of this connection.
	file := p.config.manifestFile()
	done, err := p.fetchManifest(ctx, m, file)
	if err != nil {
		return fmt.Errorf("xivo-seal: bring the manifest home: %w", err)
	}
	for _, op := range done.Operations {
		if op.Skipped != "" {
			ui.Say(fmt.Sprintf("skipped: %s, because %s", op.Name, op.Skipped))
		}
	}
	ui.Say("The manifest of the seal is in " + file)
	if p.config.ValuesFile != "" {
		to := p.config.valuesFile()
		if err := fetchValues(ctx, m, to); err != nil {
			return fmt.Errorf("xivo-seal: bring home what was the machine's own: %w (the machine still has the keys of this build: make no image of it)", err)
		}
		ui.Say(fmt.Sprintf("What was the machine's own is in %s: xivo-firstboot seal --prove IMAGE --values %s searches the image for it", to, to))
	}
	if err := m.Run(ctx, p.sealCommand("--last")...); err != nil {
		return fmt.Errorf("xivo-seal: %w (the machine still has the keys of this build: make no image of it)", err)
	}
	return nil
}

// sealCommand is a part of the seal with what the user chose for all of it.
func (p *Provisioner) sealCommand(part ...string) []string {
	argv := append([]string{cloudinit.BinaryPath, "seal"}, part...)
	if p.config.AllowConfigured {
		argv = append(argv, "--allow-configured")
	}
	for _, name := range p.config.Enable {
		argv = append(argv, "--enable", name)
	}
	for _, name := range p.config.Disable {
		argv = append(argv, "--disable", name)
	}
	return argv
}

// install puts the binary where the units of the image expect it.
func (p *Provisioner) install(ctx context.Context, m *remote.Machine) error {
	binary, err := p.binary(ctx, m)
	if err != nil {
		return err
	}
	folder, err := privateFolder(ctx, m)
	if err != nil {
		return err
	}
	upload := folder + "/xivo-firstboot"
	if err := m.Communicator.Upload(upload, bytes.NewReader(binary), nil); err != nil {
		return err
	}
	if err := m.Run(ctx, "install", "-D", "-o", "root", "-g", "root", "-m", "0755", upload, cloudinit.BinaryPath); err != nil {
		return err
	}
	return m.Run(ctx, "rm", "-rf", folder)
}

var isPrivateFolder = regexp.MustCompile(`^/tmp/xivo-seal\.[A-Za-z0-9]{10}$`)

// privateFolder makes a folder that only the connection's user, and root, may look
// into.
func privateFolder(ctx context.Context, m *remote.Machine) (string, error) {
	user := *m
	user.Sudo = false
	out, err := user.Output(ctx, "mktemp", "-d", privateFolders)
	if err != nil {
		return "", err
	}
	folder := strings.TrimSpace(out)
	if !isPrivateFolder.MatchString(folder) {
		return "", fmt.Errorf("mktemp -d %s: unexpected answer %q", privateFolders, folder)
	}
	return folder, nil
}

// binary is the configured build of xivo-firstboot, or the carried one that
// fits the machine.
func (p *Provisioner) binary(ctx context.Context, m *remote.Machine) ([]byte, error) {
	if p.config.FirstbootBinary != "" {
		return os.ReadFile(p.config.FirstbootBinary)
	}
	// Not `uname -m`: the kernel of a bake may be another one than that of a clone.
	machine, err := m.Output(ctx, "dpkg", "--print-architecture")
	if err != nil {
		return nil, err
	}
	arch, ok := architectures[strings.TrimSpace(machine)]
	if !ok {
		return nil, fmt.Errorf("the machine's Debian is a %q, which is unknown here: set firstboot_binary", strings.TrimSpace(machine))
	}
	return embedded.Firstboot(arch)
}

// architectures maps what Debian calls them to what Go does.
var architectures = map[string]string{"amd64": "amd64", "i386": "386", "arm64": "arm64"}

// manifest is what is shown of the manifest; the file has more.
type manifest struct {
	Operations []struct {
		Name string `json:"name"`
		// Skipped is why the operation does not apply to this machine, so that
		// nothing was done and nothing is proved; "" when it was done.
		Skipped string `json:"skipped"`
	} `json:"operations"`
}

// fetchManifest writes the manifest to a file of this host, and returns it. The
// file is the machine's, byte for byte; it is not made, or not changed, when
// what the machine has is no manifest.
func (p *Provisioner) fetchManifest(ctx context.Context, m *remote.Machine, to string) (*manifest, error) {
	raw, err := downloadManifest(ctx, m)
	if err != nil {
		return nil, err
	}
	if !json.Valid(raw) {
		return nil, fmt.Errorf("%s is no JSON (%d bytes)", manifestPath, len(raw))
	}
	read := &manifest{}
	if err := json.Unmarshal(raw, read); err != nil {
		return nil, fmt.Errorf("%s is no manifest of a seal: %w", manifestPath, err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, err
	}
	return read, os.WriteFile(to, raw, 0o644)
}

// fetchValues writes what was the machine's own to a file of this host that nobody
// else may read, and removes it there. It comes as the output of a command: any
// communicator's download may leave a copy on the machine's disk.
func fetchValues(ctx context.Context, m *remote.Machine, to string) error {
	raw, there, err := m.Read(ctx, valuesPath)
	if err != nil {
		return err
	}
	if !there || !json.Valid([]byte(raw)) {
		return fmt.Errorf("%s is no JSON (%d bytes)", valuesPath, len(raw))
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// Not the mode of a file that is there.
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.WriteFile(to, []byte(raw), 0o600); err != nil {
		return err
	}
	return m.Remove(ctx, valuesPath)
}

// downloadManifest reads the manifest, which root alone may do in the machine,
// through a copy where the connection is another user's.
func downloadManifest(ctx context.Context, m *remote.Machine) ([]byte, error) {
	from, folder := manifestPath, ""
	if m.Sudo {
		var err error
		if folder, err = privateFolder(ctx, m); err != nil {
			return nil, err
		}
		from = folder + "/seal.json"
		// In a folder of the user's own, who may read it.
		if err := m.Run(ctx, "install", "-m", "0644", manifestPath, from); err != nil {
			return nil, err
		}
	}
	var raw bytes.Buffer
	if err := m.Communicator.Download(from, &raw); err != nil {
		return nil, err
	}
	if m.Sudo {
		if err := m.Run(ctx, "rm", "-rf", folder); err != nil {
			return nil, err
		}
	}
	return raw.Bytes(), nil
}
