package overlay_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"pgregory.net/rapid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
)

const drawn = "100.88.135.138"

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestANodeMakesOneKeyAndKeepsIt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mesh")
	if _, err := overlay.ReadKey(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a folder: %v", err)
	}
	pair := overlay.KeyPair(dir)
	if diff, err := pair.Diff(t.Context()); err != nil || len(diff) != 1 {
		t.Fatalf("before: %q, %v", diff, err)
	}
	check(t, pair.Apply(t.Context()))
	first, err := overlay.ReadKey(dir)
	check(t, err)
	check(t, pair.Apply(t.Context()))
	if again, err := overlay.ReadKey(dir); err != nil || again != first {
		t.Errorf("the second time it has another key (%v)", err)
	}
	if diff, err := pair.Diff(t.Context()); err != nil || diff != nil {
		t.Errorf("after: %q, %v", diff, err)
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, overlay.KeyFile): 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
	other := filepath.Join(t.TempDir(), "other")
	check(t, overlay.KeyPair(other).Apply(t.Context()))
	if k, err := overlay.ReadKey(other); err != nil || k == first {
		t.Errorf("two nodes have one key (%v)", err)
	}
}

func TestADamagedKeyIsNotReplacedAndNotTold(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, overlay.KeyFile), []byte("c2VjcmV0"), 0o600))
	err := overlay.KeyPair(dir).Apply(t.Context())
	if err == nil || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestNoSecretIsPrinted(t *testing.T) {
	var root overlay.Root
	copy(root[:], "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	key := overlay.PrivateKey(root)
	told, err := json.Marshal([]any{root, key})
	check(t, err)
	text := fmt.Sprintf("%v %+v %#v %s %v %+v %#v %s %s", root, root, root, root, key, key, key, key, told)
	if strings.Contains(text, "65") || strings.Contains(text, "AAAA") || strings.Contains(text, "41") {
		t.Errorf("it prints %s", text)
	}
}

func TestAddressesAreDrawnTheSameEverywhereAndNeverATakenOne(t *testing.T) {
	id := uuid.MustParse("8ed3d8e9-4b0a-4b5b-9b5a-0d2f6f0a1c55")
	first, err := overlay.Draw(id, overlay.DefaultRange)
	check(t, err)
	// Written down: a node must find the address that an older program gave it.
	if want := netip.MustParseAddr(drawn); first.Address != want || first.Try != 0 {
		t.Errorf("drew %+v, want %s", first, want)
	}
	second, err := overlay.Draw(id, overlay.DefaultRange, first.Address)
	check(t, err)
	if second.Address == first.Address || second.Try != 1 {
		t.Errorf("with the first one taken: %+v", second)
	}

	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(8, 30).Draw(t, "bits")
		in := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, 2, 3}), bits).Masked()
		id := uuid.UUID(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		var taken []netip.Addr
		for range rapid.IntRange(0, 4).Draw(t, "taken") {
			a, err := overlay.Draw(id, in, taken...)
			if err != nil {
				if bits < 29 {
					t.Fatal(err)
				}
				return // both, or all six, are taken
			}
			last := in.Addr()
			if !in.Contains(a.Address) || a.Address == last || !in.Contains(a.Address.Next()) {
				t.Fatalf("%s is no host of %s", a.Address, in)
			}
			for _, other := range taken {
				if other == a.Address {
					t.Fatalf("%s was taken", other)
				}
			}
			taken = append(taken, a.Address)
		}
	})
}

func TestARangeThatIsFullOrNoneIsAnError(t *testing.T) {
	small := netip.MustParsePrefix("10.0.0.0/30")
	_, err := overlay.Draw(uuid.New(), small, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"))
	if err == nil {
		t.Error("drew an address of a full range")
	}
	for _, in := range []netip.Prefix{{}, netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("10.0.0.0/31"), netip.MustParsePrefix("0.0.0.0/0")} {
		if a, err := overlay.Draw(uuid.New(), in); err == nil {
			t.Errorf("%s: drew %v", in, a)
		}
	}
}

func TestTheAddressIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "mesh")
	a, err := overlay.Draw(uuid.New(), overlay.DefaultRange)
	check(t, err)
	if _, err := overlay.ReadAddress(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before: %v", err)
	}
	check(t, a.Save(dir))
	if got, err := overlay.ReadAddress(dir); err != nil || got != a {
		t.Errorf("kept %+v as %+v, %v", a, got, err)
	}
	check(t, os.WriteFile(filepath.Join(dir, overlay.AddressFile), []byte(`{"range":"100.88.0.0/16","address":"10.0.0.1","uuid":"`+a.UUID.String()+`"}`), 0o600))
	if got, err := overlay.ReadAddress(dir); err == nil {
		t.Errorf("took %+v", got)
	}
}
