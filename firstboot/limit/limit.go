// Package limit reads what comes from outside, of which nobody knows how long it is,
// into memory: no more than so much, and whole or not at all. Every package of
// firstboot, and cloudinit, may import it; it imports none.
package limit

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
)

// How many bytes are read at most, by what it is.
const (
	// File is for a file of this server: XiVO's settings, and our own state.
	File = 8 << 20
	// Answer is for what a server says of itself, of others, or to an order.
	Answer = 8 << 20
	// KV is for all of Consul's KV at once, and for its export: people's contacts
	// are in it.
	KV = 512 << 20
	// Refusal is for the text with which a server refuses; more of it is not read,
	// and not missed.
	Refusal = 4 << 10
)

// ErrTooLong is what is read of more than the limit: an error, and no part of it.
var ErrTooLong = errors.New("too long")

// Read reads all of r, which is n bytes at most.
func Read(r io.Reader, n int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, n+1))
	if err == nil && int64(len(raw)) > n {
		err = fmt.Errorf("%w: it has more than %d bytes", ErrTooLong, n)
	}
	if err != nil {
		return nil, err
	}
	return raw, nil
}

// ReadFile reads a file of n bytes at most, which may be a device. The folder must
// be one in which nobody but root can put something in its place.
func ReadFile(name string, n int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := Read(f, n)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return raw, nil
}

// Response bounds what is read of an answer: one of more than n bytes ends with
// ErrTooLong where it would be cut off, so that no reader takes the beginning for
// the whole. Of a refusal, the beginning is enough.
func Response(r *http.Response, n int64) *http.Response {
	if r.StatusCode >= 400 {
		r.Body = body{io.LimitReader(r.Body, Refusal), r.Body}
		return r
	}
	r.Body = body{&bounded{r.Body, n, n}, r.Body}
	return r
}

type body struct {
	io.Reader
	io.Closer
}

// bounded ends with ErrTooLong after the limit.
type bounded struct {
	from     io.Reader
	left     int64
	ofLength int64
}

func (b *bounded) Read(p []byte) (int, error) {
	// One byte more, to see whether there is one.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.from.Read(p)
	if int64(n) > b.left {
		n, b.left = int(b.left), 0
		return n, fmt.Errorf("%w: the answer has more than %d bytes", ErrTooLong, b.ofLength)
	}
	b.left -= int64(n)
	return n, err
}
