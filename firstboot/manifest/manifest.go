// Package manifest is the record that a seal leaves: what was taken out of an
// image, what was installed, and what a first boot compares it with. It is a file
// and nothing else; sealing writes it, and node reads it.
package manifest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// Format is the one version of the file that this program writes and reads.
const Format = 1

// Manifest is what a seal did. It goes home with the build, and stays in the
// image, where a first boot compares it with what it finds.
type Manifest struct {
	Format     int         `json:"format"`
	At         time.Time   `json:"at"`
	Firstboot  string      `json:"firstboot_version"`
	XiVO       string      `json:"xivo_version"`
	Operations []Operation `json:"operations"`
	// Files are the SHA-256 sums of what the seal installed, by path.
	Files map[string]string `json:"files"`
	// KV is the SHA-256 sum of the export of Consul's KV that is in the image.
	KV string `json:"kv_sha256,omitempty"`
}

// Operation is one line of the manifest.
type Operation struct {
	Name string `json:"name"`
	Text string `json:"text"`
	// Counterpart is what gives a clone its own at the first boot.
	Counterpart string `json:"counterpart"`
	// Removed is what was found and taken out.
	Removed []string `json:"removed,omitempty"`
	// Earlier is when an earlier seal took Removed out; nil: this one did.
	Earlier *time.Time `json:"earlier,omitempty"`
	// Disabled: left out on request, so nothing is proved.
	Disabled bool `json:"disabled,omitempty"`
	// Skipped is why it does not apply to this machine, so that nothing is proved.
	Skipped string `json:"skipped,omitempty"`
}

// Read returns nil where there is no file: the machine was never sealed. All that
// is not a whole manifest of format 1 is an error.
func Read(file string) (*Manifest, error) {
	raw, err := limit.ReadFile(file, limit.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("seal manifest: %w", err)
	}
	m := &Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("seal manifest: %s is damaged (%w): bake the image anew", file, err)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("seal manifest: %s has format %d, this program knows %d: bake the image with the same release", file, m.Format, Format)
	}
	return m, nil
}

// Keep keeps what an earlier seal took out where this one found nothing.
func (m *Manifest) Keep(earlier *Manifest) {
	for i := range m.Operations {
		op := &m.Operations[i]
		for _, before := range earlier.Operations {
			if before.Name != op.Name || len(op.Removed) > 0 || len(before.Removed) == 0 {
				continue
			}
			op.Removed, op.Earlier = before.Removed, before.Earlier
			if op.Earlier == nil {
				op.Earlier = &earlier.At
			}
		}
	}
}

// Proved says whether an operation was done, and its proof was read. One that was
// left out or skipped is not proved.
func (m *Manifest) Proved(operation string) bool {
	for _, op := range m.Operations {
		if op.Name == operation {
			return !op.Disabled && op.Skipped == ""
		}
	}
	return false
}

// Skipped is why an operation did not apply to the machine; "" where it did, or where
// the manifest does not have it.
func (m *Manifest) Skipped(operation string) string {
	for _, op := range m.Operations {
		if op.Name == operation {
			return op.Skipped
		}
	}
	return ""
}

// Sum is the SHA-256 of a content, in hex.
func Sum(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}
