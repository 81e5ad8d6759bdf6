package cloudinit

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// Where cloud-init keeps what it was given, below the root.
const (
	instanceLink   = "/var/lib/cloud/instance"
	instanceIDFile = "/var/lib/cloud/data/instance-id"
)

// Load finds the document of this instance below root and reads it, its
// secret_file included. It looks into cloud-init's merged user data, its vendor
// data, and ConfigFile, and takes the first that has a document; a bad one is
// an error, never skipped. A ConfigFile that is older than the instance was
// left by another one and does not count. It has the secret in it, so it is refused
// where anybody but its owner, who is root or runs this program, may access it.
//
// The error is an *InvalidError, or wraps ErrNoDocument when there is none
// anywhere, or says what could not be read.
func Load(root string) (*Config, error) {
	instance := instanceDir(root)
	for _, name := range []string{"cloud-config.txt", "vendor-cloud-config.txt"} {
		source := filepath.Join(instanceLink, name)
		config, err := load(root, filepath.Join(instance, name), source, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrNoDocument) {
			continue
		}
		var bad *InvalidError
		if errors.As(err, &bad) {
			return nil, fmt.Errorf("%w\n%s is cloud-init's merged copy: `xivo-firstboot validate` tells the lines of your own file", err, source)
		}
		return config, err
	}

	name := filepath.Join(root, ConfigFile)
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: neither cloud-init's user data and vendor data nor %s has one", ErrNoDocument, ConfigFile)
	} else if err != nil {
		return nil, fmt.Errorf("cloudinit: read the document: %w", err)
	}
	if born, ok := birth(instance); ok && st.ModTime().Before(born) {
		return nil, fmt.Errorf("%w: %s is older than this instance, so it was written for another one: write it again to use it", ErrNoDocument, ConfigFile)
	}
	if bad := private(st, ConfigFile); bad != nil {
		return nil, invalid([]Problem{{ConfigFile, 1, 1, "", bad.what, bad.do}})
	}
	config, err := load(root, name, ConfigFile, asWhole)
	if errors.Is(err, ErrNoDocument) {
		// Somebody wrote this file for us: to go on without it would be a guess.
		return nil, fmt.Errorf("cloudinit: %v: write the document, or remove the file", err)
	}
	return config, err
}

func load(root, name, source string, places place) (*Config, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("cloudinit: read the document: %w", err)
	}
	defer f.Close()
	raw, err := Read(f, source)
	if err != nil {
		return nil, err
	}
	c, err := parse(raw, source, places)
	if err != nil {
		return nil, err
	}
	if err := c.ReadSecret(root); err != nil {
		return nil, err
	}
	return c, nil
}

// Read reads a file with a document, of MaxSize bytes at most: of what is longer, or
// never ends, the error is an *InvalidError. The name is the file's, for messages.
func Read(r io.Reader, name string) ([]byte, error) {
	raw, err := limit.Read(r, MaxSize)
	if errors.Is(err, limit.ErrTooLong) {
		return nil, invalid([]Problem{{name, 1, 1, "", fmt.Sprintf("the file has more than %d bytes", MaxSize), "shorten it"}})
	}
	if err != nil {
		return nil, fmt.Errorf("cloudinit: read the document %s: %w", name, err)
	}
	return raw, nil
}

// ReadSecret fills in the secret from the SecretFile below root, where the
// document names one. The file holds the secret on one line and may be
// accessible to its owner only, who is root or runs this program.
func (c *Config) ReadSecret(root string) error {
	if c.SecretFile == "" {
		return nil
	}
	const what = "cloudinit: secret_file %s: "
	// Opened before it is looked at, so that what is checked is what is read;
	// without waiting, should it be a pipe.
	f, err := os.OpenFile(filepath.Join(root, c.SecretFile), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		// Not wrapped: that it is missing does not make the document a missing one.
		return fmt.Errorf(what+"there is no such file: write it with `write_files`, mode 0600", c.SecretFile)
	}
	if err != nil {
		return fmt.Errorf("cloudinit: secret_file: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cloudinit: secret_file: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf(what+"is not a regular file", c.SecretFile)
	}
	if bad := private(st, c.SecretFile); bad != nil {
		return fmt.Errorf(what+"%s: %s", c.SecretFile, bad.what, bad.do)
	}
	raw, err := limit.Read(f, MaxSize)
	if err != nil {
		return fmt.Errorf("cloudinit: secret_file: %w", err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	if bad := cmp.Or(checkSecret(s), checkStrength(s)); bad != nil {
		return fmt.Errorf(what+"the secret %s, %s", c.SecretFile, bad.what, bad.do)
	}
	c.Secret = secret.Secret(s)
	return nil
}

// private refuses a file that holds a secret and is not root's alone, or of who runs
// this program. What to do is the command that mends it.
func private(st fs.FileInfo, name string) *fault {
	if owner := st.Sys().(*syscall.Stat_t).Uid; owner != 0 && int(owner) != os.Geteuid() {
		return &fault{fmt.Sprintf("it has the secret and belongs to user %d", owner), "chown root: " + name + "; chmod 0600 " + name}
	}
	if mode := st.Mode().Perm(); mode&0o077 != 0 {
		return &fault{fmt.Sprintf("it has the secret and others may access it (mode %04o)", mode), "chmod 0600 " + name}
	}
	return nil
}

// Instance returns cloud-init's instance id below root. It is real if a data
// source gave it: cloud-init makes one up where it finds none, for example when
// a seed was detached, and that tells nothing about the machine.
func Instance(root string) (id string, real bool) {
	raw, err := limit.ReadFile(filepath.Join(root, instanceIDFile), 4096)
	if err != nil {
		return "", false
	}
	id = strings.TrimSpace(string(raw))
	return id, realInstance(id)
}

func realInstance(id string) bool {
	madeUp := []string{"", "None", "nocloud", "iid-datasource", "iid-datasource-none"}
	return !slices.Contains(madeUp, id)
}

// instanceDir follows cloud-init's link, which is absolute, below root.
func instanceDir(root string) string {
	link := filepath.Join(root, instanceLink)
	if to, err := os.Readlink(link); err == nil && filepath.IsAbs(to) {
		return filepath.Join(root, to)
	}
	return link
}

// birth is when cloud-init first ran for an instance: it leaves a semaphore for
// each thing that it does once in an instance's life, before it does it. The
// times of the folder itself change with every boot.
func birth(instance string) (born time.Time, ok bool) {
	sems, _ := os.ReadDir(filepath.Join(instance, "sem"))
	for _, sem := range sems {
		if st, err := sem.Info(); err == nil && (!ok || st.ModTime().Before(born)) {
			born, ok = st.ModTime(), true
		}
	}
	return born, ok
}
