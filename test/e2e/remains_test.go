package e2e

import (
	"os"
	"slices"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/remains"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

// TestABakedImageHoldsNothingOfItsOriginal searches the disk of an image, as the
// builder xivo-nspawn made it, for all that the machine had before the seal.
func TestABakedImageHoldsNothingOfItsOriginal(t *testing.T) {
	needsLab(t)
	maker, err := recipe.New(t.Output())
	if err != nil {
		t.Fatal(err)
	}
	image, err := maker.Baked(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.Open(image.Values)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	values, err := remains.Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"the XiVO UUID", "the machine id", "Consul's master token", "the TLS key", "the key of a service of XiVO's", "a token of somebody who was logged in"} {
		if !slices.Contains(values.Names(), name) {
			t.Errorf("the machine had no value that is %s, so this proves less: %q", name, values.Names())
		}
	}
	if st, err := raw.Stat(); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the values can be read by others: %v, %v", st.Mode(), err)
	}
	proof, err := image.Prove(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range proof.Found {
		t.Errorf("the image holds %s", found)
	}
	t.Logf("%d values, %d MiB of a disk of %d", values.Len(), proof.Read.Data>>20, proof.Read.Of>>20)
}
