package nspawn

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// Artifact is the output directory: the image and whatever the provisioners put
// beside it, such as the manifest of the seal.
type Artifact struct {
	dir           string
	files         []string
	generatedData any
}

var _ packersdk.Artifact = (*Artifact)(nil)

func newArtifact(dir string, generatedData any) (*Artifact, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list the output directory: %w", err)
	}
	a := &Artifact{dir: dir, generatedData: generatedData}
	for _, entry := range entries {
		if entry.Type().IsRegular() {
			a.files = append(a.files, filepath.Join(dir, entry.Name()))
		}
	}
	return a, nil
}

// BuilderId tells post-processors which builder made this.
func (a *Artifact) BuilderId() string { return BuilderID }

// Files are the image and what lies beside it.
func (a *Artifact) Files() []string { return a.files }

// Id is the output directory.
func (a *Artifact) Id() string { return a.dir }

// String names the files.
func (a *Artifact) String() string { return "disk image: " + strings.Join(a.files, ", ") }

// State gives post-processors the build's generated data.
func (a *Artifact) State(name string) any {
	if name == "generated_data" {
		return a.generatedData
	}
	return nil
}

// Destroy removes the output directory.
func (a *Artifact) Destroy() error { return os.RemoveAll(a.dir) }
