package secret

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"

	"golang.org/x/crypto/scrypt"
)

// How a secret is stretched. These are fixed by the format version of the mesh,
// since all its nodes must come to the same root.
const (
	stretchN    = 1 << 16
	stretchR    = 8
	stretchP    = 1
	stretchSalt = "xivo-mesh/2"
	rootSize    = 32
)

// Generation is one secret of the mesh and all that follows from it. Two nodes
// with the same secret derive the same credentials, so none has to travel. A mesh
// may trust two at once: whatever is derived carries the key id of its own.
// It prints and logs as its key id.
type Generation struct {
	// A pointer: printing what has a Generation in it does not come to the root.
	root *[rootSize]byte
}

// stretched are the generations that this process came to, by their secret.
var stretched sync.Map

// Stretch makes the generation of the user's secret: with scrypt, which takes up to
// some seconds and 64 MiB that are given back. A process that stretches a secret
// once more gets what it has.
func Stretch(s Secret) Generation {
	once, _ := stretched.LoadOrStore(s, sync.OnceValue(func() Generation {
		raw, err := scrypt.Key([]byte(s), []byte(stretchSalt), stretchN, stretchR, stretchP, rootSize)
		if err != nil {
			panic(err) // it refuses nothing but other numbers than these
		}
		debug.FreeOSMemory()
		return Generation{(*[rootSize]byte)(raw)}
	}))
	return once.(func() Generation)()
}

func (g Generation) String() string               { return "generation " + g.KeyID() }
func (g Generation) GoString() string             { return g.String() }
func (g Generation) LogValue() slog.Value         { return slog.StringValue(g.String()) }
func (g Generation) MarshalText() ([]byte, error) { return []byte(g.String()), nil }

// keptFormat is the version of what Keep writes.
const keptFormat = 1

// kept is the file of a root.
type kept struct {
	Format int    `json:"format"`
	KeyID  string `json:"key_id"`
	Root   []byte `json:"root"` // base64 in the file
	// Check tells whether the root is that of a secret.
	Check []byte `json:"check"`
}

// Keep is the generation of a secret as a node keeps it, so that it stretches the
// secret once. It opens all that the secret does: nobody but root may read it.
func (g Generation) Keep(s Secret) []byte {
	raw, err := json.MarshalIndent(kept{keptFormat, g.KeyID(), g.root[:], g.check(s)}, "", "  ")
	if err != nil {
		panic(err) // numbers, texts and bytes
	}
	return append(raw, '\n')
}

// Restore is the generation of a secret from what Keep made of it. What is damaged,
// or was made of another secret, is an error, and tells neither.
func Restore(raw []byte, s Secret) (Generation, error) {
	var k kept
	if err := json.Unmarshal(raw, &k); err != nil || k.Format != keptFormat || len(k.Root) != rootSize {
		return Generation{}, fmt.Errorf("it is no root of format %d", keptFormat)
	}
	g := Generation{(*[rootSize]byte)(k.Root)}
	if !hmac.Equal(k.Check, g.check(s)) {
		return Generation{}, errors.New("it is the root of another secret")
	}
	if k.KeyID != g.KeyID() {
		return Generation{}, errors.New("its key id is another root's")
	}
	return g, nil
}

func (g Generation) check(s Secret) []byte {
	sum := hmac.New(sha256.New, g.root[:])
	sum.Write([]byte(s))
	return sum.Sum(nil)
}

// Derive is n bytes for one purpose, which the label names: HKDF-SHA256 of the
// root. Who has them comes neither to the root nor to those of another label.
func (g Generation) Derive(label string, n int) []byte {
	out, err := hkdf.Key(sha256.New, g.root[:], []byte("xivo-mesh"), label, n)
	if err != nil {
		panic(err) // it refuses nothing but absurd lengths
	}
	return out
}
