// Package disk searches raw disks and images of them for byte strings, and writes
// over what a file system has freed. It knows no XiVO.
package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Shortest is how many bytes a pattern must have: of a shorter one, chance and what
// everybody has would be found.
const Shortest = 8

// block is how many bytes are looked at to know how far to go on: Wu and Manber's
// way of searching for many patterns, by which most bytes are never looked at.
const block = 4

const tableBits = 16

// Patterns are byte strings that are searched for together, in one pass.
type Patterns struct {
	all [][]byte
	// window is the length of the shortest; the others are known by their beginning.
	window, longest int
	// step is, by the last block of a window, how far the next window that may match is.
	step [1 << tableBits]uint8
	// ending are the patterns whose windows end with a block.
	ending map[uint16][]int
}

// NewPatterns prepares a search. Positions in it are what a Hit names.
func NewPatterns(all [][]byte) (*Patterns, error) {
	if len(all) == 0 {
		return nil, errors.New("disk: there is nothing to search for")
	}
	p := &Patterns{all: all, window: 255, ending: map[uint16][]int{}}
	for i, pattern := range all {
		if len(pattern) < Shortest {
			return nil, fmt.Errorf("disk: pattern %d has %d bytes: %d are needed", i, len(pattern), Shortest)
		}
		p.window = min(p.window, len(pattern))
		p.longest = max(p.longest, len(pattern))
	}
	far := uint8(p.window - block + 1)
	for i := range p.step {
		p.step[i] = far
	}
	for i, pattern := range all {
		for end := block; end <= p.window; end++ {
			h := hash(pattern[end-block:])
			p.step[h] = min(p.step[h], uint8(p.window-end))
			if end == p.window {
				p.ending[h] = append(p.ending[h], i)
			}
		}
	}
	return p, nil
}

func hash(b []byte) uint16 {
	return uint16(binary.LittleEndian.Uint32(b) * 0x9e3779b1 >> (32 - tableBits))
}

// each calls found for every place in data at which a pattern stands, in order.
func (p *Patterns) each(data []byte, found func(pattern, at int)) {
	for end := p.window; end <= len(data); {
		h := hash(data[end-block:])
		if step := int(p.step[h]); step > 0 {
			end += step
			continue
		}
		at := end - p.window
		for _, i := range p.ending[h] {
			if bytes.HasPrefix(data[at:], p.all[i]) {
				found(i, at)
			}
		}
		end++
	}
}
