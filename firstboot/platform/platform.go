// Package platform tells what this XiVO is: its version and what that version
// does differently, where things are, how services are controlled and what the
// hardware says. Every package of firstboot may import it; it imports
// firstboot/files only.
package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Platform is one XiVO server as found. All paths that it hands out are below
// Root, which is "/" on a real server and a folder of its own in tests.
type Platform struct {
	Root    string
	Version Version
	// VersionFile is where the version was found.
	VersionFile string
	Traits      Traits
	Init        Init
}

// Paths of XiVO and Debian, relative to the root, that more than one package
// needs. See docs/xivo/consul.md, Files; docs/xivo/ctid.md, Configuration of XiVO's
// daemons; docs/xivo/identity.md, The UUID.
const (
	VersionFile      = "/usr/share/xivo/XIVO-VERSION"
	OldVersionFile   = "/usr/share/pf-xivo/XIVO-VERSION"
	ConsulConfigDir  = "/etc/consul/xivo"
	ConsulDataDir    = "/var/lib/consul"
	CertificateFile  = "/usr/share/xivo-certs/server.crt"
	CertificateKey   = "/usr/share/xivo-certs/server.key"
	CtidConfigDir    = "/etc/xivo-ctid/conf.d"
	RabbitConfigDir  = "/etc/rabbitmq"
	RabbitDataDir    = "/var/lib/rabbitmq"
	StateDir         = "/var/lib/xivo-firstboot"
	WizardMarkerFile = "/var/lib/xivo/configured"
)

// Path returns the place of an absolute path of the server below the root.
func (p *Platform) Path(elem ...string) string {
	return filepath.Join(append([]string{p.Root}, elem...)...)
}

// Detect reads the version file below root and returns what this server is.
// It changes nothing. A missing or unreadable version is an error that names
// the file: without it nothing may be written.
func Detect(root string) (*Platform, error) {
	p := &Platform{Root: root}
	raw, name, err := readFirst(p, VersionFile, OldVersionFile)
	if err != nil {
		return nil, err
	}
	p.VersionFile = name
	p.Version, err = ParseVersion(strings.TrimSpace(string(raw)))
	if err != nil {
		return nil, fmt.Errorf("platform: %s: %w", name, err)
	}
	p.Traits, err = traitsOf(p.Version)
	if err != nil {
		return nil, fmt.Errorf("platform: %s: %w", name, err)
	}
	p.Init = detectInit(root)
	return p, nil
}

func readFirst(p *Platform, names ...string) ([]byte, string, error) {
	for _, name := range names {
		raw, err := limit.ReadFile(p.Path(name), limit.File)
		if err == nil {
			return raw, name, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, name, fmt.Errorf("platform: read the XiVO version: %w", err)
		}
	}
	return nil, "", fmt.Errorf("platform: no XiVO here: neither %s exists", strings.Join(names, " nor "))
}

// Init controls services. Stop returns when the processes are gone; Start
// returns when the init system says that the service runs. Neither is used on
// a unit that is ordered after the caller: that would deadlock.
type Init interface {
	Start(ctx context.Context, service string) error
	Stop(ctx context.Context, service string) error
	Restart(ctx context.Context, service string) error
	// Active says whether the service runs now.
	Active(ctx context.Context, service string) (bool, error)
	// SetEnvironment sets a variable that services started from now on inherit.
	// An init system without such a thing does nothing.
	SetEnvironment(ctx context.Context, key, value string) error
	// Environment reads it back; "" where it is not set.
	Environment(ctx context.Context, key string) (string, error)
}

// WizardMarked says whether XiVO's wizard left its marker file, which it does up
// to 16.05 (see Traits.WizardFlagInDatabase).
func (p *Platform) WizardMarked() (bool, error) {
	_, err := os.Stat(p.Path(WizardMarkerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
