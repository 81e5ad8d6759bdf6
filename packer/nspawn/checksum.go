package nspawn

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
)

// checksum is a digest that a file must have.
type checksum struct {
	hash hash.Hash
	want string
}

func parseChecksum(s string) (*checksum, error) {
	kind, digest, _ := strings.Cut(strings.ToLower(s), ":")
	c := &checksum{want: digest}
	switch kind {
	case "sha256":
		c.hash = sha256.New()
	case "sha512":
		c.hash = sha512.New()
	default:
		return nil, errChecksumForm
	}
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != c.hash.Size() {
		return nil, errChecksumForm
	}
	return c, nil
}

// verify reads the file. The error is of a digest that differs, of reading, or
// that of ctx when it ends first.
func (c *checksum) verify(ctx context.Context, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	c.hash.Reset()
	if _, err := io.Copy(c.hash, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	})); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if got := hex.EncodeToString(c.hash.Sum(nil)); got != c.want {
		return fmt.Errorf("%s has the checksum %s, expected %s: get it again, or correct source_checksum", name, got, c.want)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
