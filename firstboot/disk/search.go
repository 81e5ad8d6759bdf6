package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Hit is a place at which a pattern stands.
type Hit struct {
	Pattern int
	At      int64
}

// Read is how far a search came.
type Read struct {
	// Of is the size of what is searched; At is where the search is. What lies
	// between and was never written is skipped, and is no part of Data.
	At, Of, Data int64
}

// chunk is how much is read at once.
const chunk = 4 << 20

// Search reads a file or a device from its beginning to its end and calls found for
// every place at which a pattern stands. Holes of a sparse file are skipped. After
// each piece it calls progress, which may be nil.
func Search(ctx context.Context, f *os.File, p *Patterns, found func(Hit), progress func(Read)) (Read, error) {
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return Read{}, fmt.Errorf("disk: the size of %s: %w", f.Name(), err)
	}
	s := &search{f: f, patterns: p, found: found, progress: progress, read: Read{Of: size}}
	for {
		start, end, err := s.data(s.read.At)
		if err != nil {
			return s.read, fmt.Errorf("disk: read %s: %w", f.Name(), err)
		}
		if start == end {
			s.read.At = size
			return s.read, nil
		}
		// A pattern may begin or end with zeros, which a hole has, too.
		margin := int64(p.longest - 1)
		if err := s.scan(ctx, max(start-margin, s.read.At), min(end+margin, size)); err != nil {
			return s.read, fmt.Errorf("disk: read %s: %w", f.Name(), err)
		}
	}
}

type search struct {
	f        *os.File
	patterns *Patterns
	found    func(Hit)
	progress func(Read)
	read     Read
}

// data is where the next data from a place on are: nothing when start is end. What
// cannot tell of holes has none.
func (s *search) data(from int64) (start, end int64, err error) {
	size := s.read.Of
	if from >= size {
		return size, size, nil
	}
	start, err = s.f.Seek(from, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return from, size, nil
	case err != nil:
		return 0, 0, err
	}
	end, err = s.f.Seek(start, unix.SEEK_HOLE)
	return start, min(end, size), err
}

// piece is what was read at once; fresh is where it begins to be what the piece
// before did not have.
type piece struct {
	data  []byte
	at    int64
	fresh int
	err   error
}

// scan searches what lies between two places. The next piece is read meanwhile.
func (s *search) scan(ctx context.Context, start, end int64) error {
	ctx, cancel := context.WithCancel(ctx)
	pieces, empty := make(chan piece), make(chan []byte, 2)
	overlap := s.patterns.longest - 1
	for range cap(empty) {
		empty <- make([]byte, overlap+chunk)
	}
	go func() {
		defer close(pieces)
		tail := []byte(nil)
		for at := start; at < end; {
			var buf []byte
			select {
			case buf = <-empty:
			case <-ctx.Done():
				return
			}
			fresh := copy(buf, tail)
			n, err := s.f.ReadAt(buf[fresh:fresh+int(min(chunk, end-at))], at)
			if err == io.EOF && n > 0 {
				err = nil
			}
			data := buf[:fresh+n]
			tail = append(tail[:0:0], data[max(0, len(data)-overlap):]...)
			select {
			case pieces <- piece{data, at - int64(fresh), fresh, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
			at += int64(n)
		}
	}()
	// The reader is done with the file when this returns.
	defer func() {
		cancel()
		for range pieces {
		}
	}()
	for p := range pieces {
		if p.err != nil {
			return p.err
		}
		s.patterns.each(p.data, func(pattern, at int) {
			if at+len(s.patterns.all[pattern]) > p.fresh {
				s.found(Hit{pattern, p.at + int64(at)})
			}
		})
		s.read.Data += int64(len(p.data) - p.fresh)
		s.read.At = p.at + int64(len(p.data))
		if s.progress != nil {
			s.progress(s.read)
		}
		empty <- p.data[:cap(p.data)]
	}
	return ctx.Err()
}
