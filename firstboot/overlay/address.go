package overlay

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
)

// Address is a node's place in the overlay, which a member keeps for life.
type Address struct {
	// Range is not valid in a network that an operator brought.
	Range   netip.Prefix `json:"range"`
	Address netip.Addr   `json:"address"`
	// Try says how many addresses were drawn before it.
	Try  int       `json:"try"`
	UUID uuid.UUID `json:"uuid"`
}

// tries is how often an address is drawn. Of a range with one free address in a
// hundred, so many draws miss it once in 10^43.
const tries = 10_000

// Draw is the address that the UUID gives in a range: the first of a fixed sequence
// of draws that is not taken. The network's own address and its broadcast address
// are never drawn.
//
//	host = 1 + SHA256("xivo-mesh overlay" | uuid | try) mod (2^bits - 2)
//
// The UUID has its 16 bytes, try is a decimal number. A range has 2 to 24 bits for
// hosts; another one, and one in which nothing is free, is an error.
func Draw(id uuid.UUID, in netip.Prefix, taken ...netip.Addr) (Address, error) {
	bits := 32 - in.Bits()
	if !in.IsValid() || !in.Addr().Is4() || bits < 2 || bits > 24 {
		return Address{}, fmt.Errorf("overlay: the range %s is no IPv4 range between /8 and /30", in)
	}
	in = in.Masked()
	used := map[netip.Addr]bool{}
	for _, a := range taken {
		used[a] = true
	}
	first := in.Addr().As4()
	for try := range tries {
		sum := sha256.Sum256(append(append([]byte("xivo-mesh overlay"), id[:]...), strconv.Itoa(try)...))
		host := 1 + binary.BigEndian.Uint64(sum[:8])%(1<<bits-2)
		var raw [4]byte
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(first[:])+uint32(host))
		if a := netip.AddrFrom4(raw); !used[a] {
			return Address{Range: in, Address: a, Try: try, UUID: id}, nil
		}
	}
	return Address{}, fmt.Errorf("overlay: no address of %s is free for %s: %d are taken; take a larger `network.range`", in, id, len(used))
}

// ReadAddress reads the address that the node keeps in its state folder. That there
// is none is fs.ErrNotExist.
func ReadAddress(dir string) (Address, error) {
	name := filepath.Join(dir, AddressFile)
	raw, err := files.ReadFile(name)
	if err != nil {
		return Address{}, fmt.Errorf("overlay: read the address of this node: %w", err)
	}
	var a Address
	if err := json.Unmarshal(raw, &a); err != nil {
		return Address{}, fmt.Errorf("overlay: read %s: %w", name, err)
	}
	if !a.Address.Is4() || a.Range.IsValid() && !a.Range.Contains(a.Address) || a.UUID == uuid.Nil {
		return Address{}, fmt.Errorf("overlay: %s holds no address, or none of its range", name)
	}
	return a, nil
}

// Save keeps the address in the state folder.
func (a Address) Save(dir string) error {
	raw, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return write(dir, AddressFile, append(raw, '\n'))
}
