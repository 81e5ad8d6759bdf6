package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Identity is what makes this node itself. It is decided once per instance, in
// one place, written to the journal, and never derived again.
type Identity struct {
	UUID uuid.UUID `json:"uuid"`
	// Hostname is the short name; Name is Consul's datacenter and node name and
	// the broker's cluster name.
	Hostname string `json:"hostname"`
	Name     string `json:"name"`
	// Adopted: the UUID was there before, and what belongs to it is kept.
	Adopted bool `json:"adopted,omitempty"`
	// Copied: the broker was not sealed, so it woke up as that of another node.
	Copied bool `json:"copied,omitempty"`
	// NoDocument: it became without one, and is alone with a secret that nobody
	// else has until one comes.
	NoDocument bool `json:"no_document,omitempty"`
}

// Names of the phases that run once, as the journal has them: a release that reads
// it must find them.
const (
	Become = "become"
	Settle = "settle"
)

// Journal is what survives a power cut: whose identity this is, and which steps
// of the phases that run once were begun and done. Every change is on the disk
// before the call returns.
type Journal struct {
	Format   int                     `json:"format"`
	Instance Instance                `json:"instance"`
	Identity Identity                `json:"identity"`
	Steps    map[string]engine.Stamp `json:"steps"`

	file string
}

// readJournal returns nil where there is none yet. A machine that has the status
// of a node had one: to take it for a new machine would change its identity.
func readJournal(file string) (*Journal, error) {
	raw, err := limit.ReadFile(file, limit.File)
	if errors.Is(err, fs.ErrNotExist) {
		status := filepath.Join(filepath.Dir(file), filepath.Base(StatusFile))
		if _, err := os.Stat(status); err == nil {
			return nil, fmt.Errorf("journal: %s is gone, but %s says that this machine is a node: nothing was changed; restore it from a backup, or remove both for this machine to become a new node", file, status)
		}
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	return parseJournal(raw, file)
}

// parseJournal refuses all that is not a whole journal: without it, an identity could
// be changed in doubt.
func parseJournal(raw []byte, file string) (*Journal, error) {
	j := &Journal{file: file}
	if err := json.Unmarshal(raw, j); err != nil {
		return nil, fmt.Errorf("journal: %s is damaged (%w): nothing was changed; restore it from a backup: without it this node does not know who it is", file, err)
	}
	if j.Format != 1 {
		return nil, fmt.Errorf("journal: %s has format %d, this program knows 1: use the release that wrote it", file, j.Format)
	}
	if j.Identity.UUID == uuid.Nil || j.Steps == nil {
		return nil, fmt.Errorf("journal: %s tells no identity or no steps: nothing was changed; restore it from a backup", file)
	}
	for id, stamp := range j.Steps {
		if stamp.State != engine.Running && stamp.State != engine.Done {
			return nil, fmt.Errorf("journal: %s says that step %q is %q, which is neither %s nor %s: nothing was changed; restore it from a backup", file, id, stamp.State, engine.Running, engine.Done)
		}
	}
	return j, nil
}

// MustBecome says whether the machine below root, about which something cannot
// be read, must not work before it has an identity of its own: it was sealed, or
// is a copy that began to become. All others worked before: one that nobody asked
// to change, one that was adopted, and one that became. A journal that cannot be
// read counts as that: doubt holds nobody back.
func MustBecome(root string) bool {
	j, err := readJournal(filepath.Join(root, journalFile))
	if err != nil {
		return false
	}
	if j != nil {
		return !j.Became() && !j.Identity.Adopted
	}
	_, err = os.Lstat(filepath.Join(root, ManifestFile))
	return !errors.Is(err, fs.ErrNotExist)
}

// NewJournal is that of an instance that begins to become; nothing is written
// before Save.
func (n *Node) NewJournal(id Identity) *Journal {
	return &Journal{Format: 1, Instance: n.Instance, Identity: id, Steps: map[string]engine.Stamp{}, file: n.Platform.Path(journalFile)}
}

// Save writes the journal; it is on the disk when it returns.
func (j *Journal) Save() error { return writeJSON(j.file, j) }

// Undo makes steps run again that were done; that they were begun stays known.
// Nothing is written before Save.
func (j *Journal) Undo(ids ...string) {
	for _, id := range ids {
		if j.Done(id) {
			j.Steps[id] = engine.Stamp{State: engine.Running, At: time.Now().UTC()}
		}
	}
}

// Stamp implements engine.Journal.
func (j *Journal) Stamp(id string, s engine.State) error {
	j.Steps[id] = engine.Stamp{State: s, At: time.Now().UTC()}
	return j.Save()
}

// Begun implements engine.Journal.
func (j *Journal) Begun(id string) bool {
	_, ok := j.Steps[id]
	return ok
}

// Done implements engine.Journal.
func (j *Journal) Done(id string) bool { return j.Steps[id].State == engine.Done }

// Became says whether become came to its end, whatever steps it had then: a later
// release that knows more of them does not begin it again.
func (j *Journal) Became() bool { return j.Done(Become) }

// Settled says the same of settle.
func (j *Journal) Settled() bool { return j.Done(Settle) }
