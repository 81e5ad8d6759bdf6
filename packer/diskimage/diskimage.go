// Package diskimage tells the formats of disk images by their content: builders
// name the files as they please.
package diskimage

import (
	"bytes"
	"errors"
	"io"
	"os"
)

// Format is a format of disk images, as QEMU calls it.
type Format string

// What FormatOf tells apart.
const (
	QCOW2   Format = "qcow2"
	Raw     Format = "raw" // with a boot sector, as a disk that a BIOS starts has
	Unknown Format = ""    // anything else; a raw image without a partition table too
)

// sector is how much FormatOf reads.
const sector = 512

var (
	// qcow2Magic begins a qcow2 image of any version: docs/interop/qcow2 of QEMU.
	qcow2Magic = []byte("QFI\xfb")
	// bootSignature ends the first sector of a disk with a boot sector, the
	// protective one of a GPT included.
	bootSignature = []byte{0x55, 0xaa}
)

// FormatOf returns the format of the image in a file. A file that is shorter
// than a sector is Unknown. The error, which names the file, is of opening or
// reading it.
func FormatOf(name string) (Format, error) {
	f, err := os.Open(name)
	if err != nil {
		return Unknown, err
	}
	defer f.Close()
	start := make([]byte, sector)
	switch _, err := io.ReadFull(f, start); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Unknown, nil
	case err != nil:
		return Unknown, err
	case bytes.HasPrefix(start, qcow2Magic):
		return QCOW2, nil
	case bytes.HasSuffix(start, bootSignature):
		return Raw, nil
	}
	return Unknown, nil
}
