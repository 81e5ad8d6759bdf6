// Package install is the Packer provisioner xivo-install. It works with any
// builder: it turns the Debian in the machine into a XiVO of a given version,
// with the publisher's own install script. It comes before xivo-seal.
package install

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/remote"
)

// Places in the machine.
const (
	// debianFile says which Debian it is; the install script reads it too.
	debianFile  = "/etc/debian_version"
	sourcesFile = "/etc/apt/sources.list"
	// scriptFile is where only root may write. It is removed after an installation
	// that succeeded.
	scriptFile = "/root/xivo_install.sh"
	// aptFile has apt's settings for the installation, and is removed after it.
	aptFile = "/etc/apt/apt.conf.d/99xivo-install"
	// archiveFile stays, as the sources of archive.debian.org do. apt reads no
	// file whose name has a dot in it, .conf apart.
	archiveFile = "/etc/apt/apt.conf.d/80archive-debian-org"
)

const archiveSettings = `// What archive.debian.org has is never signed anew.
Acquire::Check-Valid-Until "false";
`

// aptSettings makes apt try again, and dpkg keep a configuration file that is
// there rather than ask: the script writes to /etc/wgetrc before it installs
// wget, and an unanswered question would end it.
const aptSettings = `Acquire::Retries "%d";
Dpkg::Options { "--force-confdef"; "--force-confold"; };
`

// Provisioner is the Packer provisioner.
type Provisioner struct {
	config Config
}

var _ packersdk.Provisioner = (*Provisioner)(nil)

// ConfigSpec describes the configuration to Packer.
func (p *Provisioner) ConfigSpec() hcldec.ObjectSpec { return p.config.FlatMapstructure().HCL2Spec() }

// Prepare checks the configuration.
func (p *Provisioner) Prepare(raws ...any) error { return p.config.Prepare(raws...) }

// Provision installs XiVO. A machine that has the wanted version already is
// left as it is. Another version, another Debian or a mirror that does not have
// it is an error before anything is changed.
func (p *Provisioner) Provision(ctx context.Context, ui packersdk.Ui, comm packersdk.Communicator, _ map[string]any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.config.Timeout,
		fmt.Errorf("not finished within timeout = %s", p.config.Timeout))
	defer cancel()
	m := &remote.Machine{UI: ui, Communicator: comm, Sudo: p.config.Sudo}

	installed, err := p.preflight(ctx, m)
	if err != nil {
		return fmt.Errorf("xivo-install: %w; nothing was installed", err)
	}
	if installed {
		ui.Say(fmt.Sprintf("%s is already installed: nothing to do", p.name()))
		return nil
	}
	if err := p.install(ctx, m); err != nil {
		return fmt.Errorf("xivo-install: %w (the machine is between Debian and %s: begin again with a new one)", err, p.name())
	}
	ui.Say(p.name() + " is installed")
	return nil
}

// name is what is installed, for a person to read.
func (p *Provisioner) name() string {
	return p.config.release.product.name + " " + p.config.XivoVersion
}

// preflight says whether the wanted version is installed already. If it is not,
// the install script is in the machine afterwards, ready to run; after an error,
// nothing is.
func (p *Provisioner) preflight(ctx context.Context, m *remote.Machine) (installed bool, err error) {
	switch version, there, err := m.ReadWord(ctx, platform.VersionFile); {
	case err != nil:
		return false, fmt.Errorf("read the machine's XiVO version: %w", err)
	case there && version == p.config.XivoVersion:
		return true, nil
	case there:
		return false, fmt.Errorf("the machine has XiVO %s and %s is wanted: begin with a plain Debian, or set xivo_version to what is there", version, p.config.XivoVersion)
	}
	if err := p.checkDebian(ctx, m); err != nil {
		return false, err
	}
	return false, p.fetchScript(ctx, m)
}

// debianNumber is the release in /etc/debian_version, which says 7.11, 12.5, or
// trixie/sid before a release.
var debianNumber = regexp.MustCompile(`^([0-9]{1,3})(\.[0-9]+)*$`)

func (p *Provisioner) checkDebian(ctx context.Context, m *remote.Machine) error {
	want := p.config.release.debian
	text, there, err := m.ReadWord(ctx, debianFile)
	if err != nil {
		return fmt.Errorf("read the machine's Debian release: %w", err)
	}
	if !there {
		return fmt.Errorf("%s needs %s, and the machine is no Debian: it has no %s", p.name(), want, debianFile)
	}
	if match := debianNumber.FindStringSubmatch(text); match != nil {
		if n, err := strconv.Atoi(match[1]); err == nil && debian(n) == want {
			return nil
		}
	}
	return fmt.Errorf("%s needs %s, and the machine is Debian %s: choose a source of that release, or another xivo_version", p.name(), want, text)
}

// fetchScript sees that the mirror has the version, and gets the script.
func (p *Provisioner) fetchScript(ctx context.Context, m *remote.Machine) error {
	fetch, err := newFetcher(ctx, m, p.config.Mirror)
	if err != nil {
		return err
	}
	m.UI.Say(fmt.Sprintf("Looking for %s on %s", p.name(), p.config.Mirror))
	dist := p.config.release.product.prefix + p.config.XivoVersion
	if err := fetch.file(ctx, "/archive/dists/"+dist+"/Release", "/dev/null"); err != nil {
		return err
	}
	if err := p.checkedScript(ctx, m, fetch); err != nil {
		return errors.Join(err, m.Remove(ctx, scriptFile))
	}
	return nil
}

// checkedScript gets the script and sees that it is one: a gateway that answers
// everything with a page of its own must not be run as root.
func (p *Provisioner) checkedScript(ctx context.Context, m *remote.Machine, fetch *fetcher) error {
	if err := fetch.file(ctx, p.config.ScriptPath, scriptFile); err != nil {
		return err
	}
	begin, err := m.Output(ctx, "head", "-c", "2", scriptFile)
	if err != nil {
		return err
	}
	if begin != "#!" {
		return fmt.Errorf("%s%s is no script: it begins with %q", p.config.Mirror, p.config.ScriptPath, begin)
	}
	return nil
}

func (p *Provisioner) install(ctx context.Context, m *remote.Machine) error {
	if p.config.fromArchive() {
		if err := useArchive(ctx, m); err != nil {
			return err
		}
	}
	if err := m.Write(ctx, aptFile, fmt.Sprintf(aptSettings, p.config.AptRetries)); err != nil {
		return err
	}
	if from := p.config.release.product.mirror; p.config.Mirror != from {
		// The script has its mirror built in.
		expr := fmt.Sprintf("s|%s|%s|g", regexp.QuoteMeta(from), p.config.Mirror)
		if _, err := m.Output(ctx, "sed", "-i", "-e", expr, scriptFile); err != nil {
			return fmt.Errorf("have the script use %s: %w", p.config.Mirror, err)
		}
	}

	m.UI.Say("Installing " + p.name())
	err := m.Run(ctx, "env", "DEBIAN_FRONTEND=noninteractive", "bash", scriptFile, "-a", p.config.XivoVersion)
	if err != nil {
		return fmt.Errorf("the install script failed, for the reason shown above: %w", err)
	}
	switch version, there, err := m.ReadWord(ctx, platform.VersionFile); {
	case err != nil:
		return fmt.Errorf("read the installed version: %w", err)
	case !there:
		return fmt.Errorf("the install script ended well, and there is no %s", platform.VersionFile)
	case version != p.config.XivoVersion:
		return fmt.Errorf("the install script ended well, and %s says %s instead of %s", platform.VersionFile, version, p.config.XivoVersion)
	}
	return m.Remove(ctx, scriptFile, aptFile)
}

// useArchive makes apt take Debian's packages from archive.debian.org.
func useArchive(ctx context.Context, m *remote.Machine) error {
	m.UI.Say("Taking Debian's packages from archive.debian.org")
	if err := m.Write(ctx, archiveFile, archiveSettings); err != nil {
		return err
	}
	list, there, err := m.Read(ctx, sourcesFile)
	if err != nil || !there {
		return err
	}
	if archived := archiveSources(list); archived != list {
		return m.Write(ctx, sourcesFile, archived)
	}
	return nil
}

// fetcher gets files from the mirror with what the machine has for it.
type fetcher struct {
	machine *remote.Machine
	mirror  string
	argv    []string // completed by a file to write and a URL
	// refused is the exit status that says that the server answered, with an
	// error. All others mean that it did not.
	refused int
}

func newFetcher(ctx context.Context, m *remote.Machine, mirror string) (*fetcher, error) {
	tool, err := m.Output(ctx, "sh", "-c", "command -v wget || command -v curl || true")
	if err != nil {
		return nil, err
	}
	f := &fetcher{machine: m, mirror: mirror}
	switch path.Base(strings.TrimSpace(tool)) {
	case "wget":
		f.argv, f.refused = []string{"wget", "-nv", "-T", "30", "-t", "3", "-O"}, 8
	case "curl":
		f.argv, f.refused = []string{"curl", "-fsSL", "--connect-timeout", "30", "--retry", "2", "-o"}, 22
	default:
		return nil, errors.New("the machine has neither wget nor curl: install one first, with a shell provisioner: apt-get install -y wget")
	}
	return f, nil
}

// file fetches a file of the mirror.
func (f *fetcher) file(ctx context.Context, file, to string) error {
	_, err := f.machine.Output(ctx, append(f.argv[:len(f.argv):len(f.argv)], to, f.mirror+file)...)
	exit := (*remote.ExitError)(nil)
	switch {
	case err == nil || !errors.As(err, &exit):
		return err
	case exit.Status == f.refused:
		return fmt.Errorf("the mirror %s answers and does not have %s (%s): check xivo_version, mirror and script_path", f.mirror, file, exit.Stderr)
	default:
		return fmt.Errorf("the machine cannot reach the mirror %s (%w): check the machine's network and name server, or set mirror to one that it can reach", f.mirror, exit)
	}
}
