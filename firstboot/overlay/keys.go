package overlay

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
)

// Files of the state folder. The key is one clone's own, and goes with the seal.
const (
	KeyFile     = "wg.key"
	AddressFile = "address.json"
	StateFile   = "peers.json"
)

const redacted = "[redacted]"

// Root is what the mesh's secret was stretched to: 32 bytes that every member has.
// It prints and marshals as "[redacted]".
type Root [32]byte

func (Root) String() string               { return redacted }
func (Root) GoString() string             { return redacted }
func (Root) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// derive is a key from the root for one purpose.
func (r Root) derive(label string) [32]byte {
	raw, err := hkdf.Key(sha256.New, r[:], nil, "xivo-mesh/2 "+label, 32)
	if err != nil {
		panic(err) // only for a length that no hash gives
	}
	return [32]byte(raw)
}

// pairKey is the pre-shared key of two nodes, the same seen from either.
func (r Root) pairKey(a, b Key) [32]byte {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	return r.derive("wireguard-psk|" + a.String() + "|" + b.String())
}

func (r Root) helloKey() [32]byte   { return r.derive("hello") }
func (r Root) membersKey() [32]byte { return r.derive("memberlist") }

// Key is the public half of a node's X25519 key pair; as text, base64 like WireGuard's.
type Key [32]byte

func (k Key) String() string               { return base64.StdEncoding.EncodeToString(k[:]) }
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText reads what MarshalText wrote. The key of all zeros is nobody's.
func (k *Key) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil || len(raw) != len(k) || Key(raw) == (Key{}) {
		return errors.New("not a public key: 32 bytes in base64")
	}
	*k = Key(raw)
	return nil
}

// PrivateKey is the other half. It prints and marshals as "[redacted]".
type PrivateKey [32]byte

func (PrivateKey) String() string               { return redacted }
func (PrivateKey) GoString() string             { return redacted }
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Public is the half that others know.
func (k PrivateKey) Public() Key {
	own, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		panic(err) // only for another length
	}
	return Key(own.PublicKey().Bytes())
}

// Derive is n bytes for one purpose, which nobody else can compute.
func (k PrivateKey) Derive(label string, n int) []byte {
	out, err := hkdf.Key(sha256.New, k[:], nil, "xivo-mesh/2 own "+label, n)
	if err != nil {
		panic(err) // only for a length that no hash gives
	}
	return out
}

// shared is what only the holders of either private key can compute. A public key
// of low order is an error.
func (k PrivateKey) shared(with Key) ([]byte, error) {
	own, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return nil, err
	}
	other, err := ecdh.X25519().NewPublicKey(with[:])
	if err != nil {
		return nil, err
	}
	return own.ECDH(other)
}

// NewKey draws a key pair.
func NewKey() PrivateKey {
	var k PrivateKey
	rand.Read(k[:])
	return k
}

// ReadKey reads the node's key from its state folder. That there is none is
// fs.ErrNotExist; the error of a damaged file does not tell what is in it.
func ReadKey(dir string) (PrivateKey, error) {
	name := filepath.Join(dir, KeyFile)
	text, err := files.ReadFile(name)
	if err != nil {
		return PrivateKey{}, fmt.Errorf("overlay: read the key of this node: %w", err)
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(raw) != 32 || PrivateKey(raw) == (PrivateKey{}) {
		return PrivateKey{}, fmt.Errorf("overlay: %s holds no key: restore it, or remove it and run again, and this node gets another one, as which it must be registered anew", name)
	}
	return PrivateKey(raw), nil
}

// KeyPair is that the node has a key of its own in the folder: random, and in no
// other's hands. One that is there stays.
func KeyPair(dir string) engine.Resource {
	diff := func(context.Context) ([]string, error) {
		switch _, err := ReadKey(dir); {
		case errors.Is(err, fs.ErrNotExist):
			return []string{"this node has no key of its own"}, nil
		default:
			return nil, err
		}
	}
	apply := func(context.Context) error {
		if _, err := ReadKey(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		k := NewKey()
		return write(dir, KeyFile, []byte(base64.StdEncoding.EncodeToString(k[:])+"\n"))
	}
	return engine.New(diff, apply)
}

// write puts a file of our own into the state folder, which only root may enter.
func write(dir, name string, content []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return files.WriteFile(filepath.Join(dir, name), content, files.Private())
}
