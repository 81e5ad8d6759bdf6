package disk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// FileSystem is one that is mounted as a whole, from a block device, and may be
// written.
type FileSystem struct {
	// Mount is where; Type is its kind, such as ext4.
	Mount, Type string
	// device is MAJOR:MINOR.
	device string
}

// FileSystems are those that this process sees. What is a part of another one, bound
// to a place, is none: it is another machine's.
func FileSystems() ([]FileSystem, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("disk: %w", err)
	}
	return fileSystems(string(raw)), nil
}

// fileSystems reads the kernel's list; see its Documentation/filesystems/proc.rst.
func fileSystems(mountinfo string) []FileSystem {
	var all []FileSystem
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if len(mount) < 6 || len(kind) < 3 || mount[3] != "/" || !strings.HasPrefix(kind[1], "/dev/") {
			continue
		}
		readOnly := slices.Contains(strings.Split(mount[5], ","), "ro") || slices.Contains(strings.Split(kind[2], ","), "ro")
		known := slices.ContainsFunc(all, func(f FileSystem) bool { return f.device == mount[2] })
		if !readOnly && !known {
			all = append(all, FileSystem{Mount: unescaped(mount[4]), Type: kind[0], device: mount[2]})
		}
	}
	return all
}

// unescaped is a path of the list, in which a few characters are octal.
func unescaped(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+3 < len(path) {
			if n, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// name is the kernel's for the device, such as vda1 or dm-0.
func (f FileSystem) name() (string, error) {
	link, err := os.Readlink("/sys/dev/block/" + f.device)
	if err != nil {
		return "", fmt.Errorf("disk: the device of %s: %w", f.Mount, err)
	}
	return filepath.Base(link), nil
}
