// Package cache keeps what the lab builds, outside the checkout, each thing
// below the hash of everything that went into it.
package cache

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// keep is how many results of one kind stay; older ones are removed when a new
// one is made, so that a day of rebuilding images does not fill the disk.
const keep = 2

// Dir is the folder that holds everything: $XDG_CACHE_HOME, or ~/.cache,
// with the project's name.
func Dir() (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w; set XDG_CACHE_HOME", err)
	}
	return filepath.Join(base, "packer-plugin-xivo"), nil
}

// Make returns the folder that build filled for this key, and calls build only
// when there is none. Build gets an empty folder that takes its final name once
// build returned nil, so whatever is found under a key is complete. Two
// processes that want one kind wait for each other.
func Make(kind string, key Key, build func(dir string) error) (string, error) {
	top, err := Dir()
	if err != nil {
		return "", err
	}
	top = filepath.Join(top, kind)
	if err := os.MkdirAll(top, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(top, ".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()

	dir := filepath.Join(top, key.String())
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		_ = os.Chtimes(dir, now, now) // only tells prune what is in use
		return dir, nil
	}
	if err := prune(top, keep-1); err != nil {
		return "", err
	}
	// What a killed build left is swept by the next one. The name is a new one
	// each time: something of that build may be about to clean up after itself.
	stale, err := filepath.Glob(filepath.Join(top, ".part-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	part, err := os.MkdirTemp(top, ".part-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(part, 0o755); err != nil {
		return "", err
	}
	if err := build(part); err != nil {
		_ = os.RemoveAll(part) // the next build sweeps what stays
		return "", fmt.Errorf("make %s: %w", kind, err)
	}
	return dir, os.Rename(part, dir)
}

// Has says whether there is any result of a kind, perhaps an older one.
func Has(kind string) bool {
	top, err := Dir()
	if err != nil {
		return false
	}
	results, err := filepath.Glob(filepath.Join(top, kind, "[^.]*"))
	return err == nil && len(results) > 0
}

// Drop removes what is kept under a key, so that Make builds it again.
func Drop(kind string, key Key) error {
	top, err := Dir()
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(top, kind, key.String()))
}

// Scratch returns an empty folder for what is too large for memory, until release
// removes it. One process has it at a time, others wait; what a killed one left
// is swept.
func Scratch(kind string) (dir string, release func() error, err error) {
	top, err := Dir()
	if err != nil {
		return "", nil, err
	}
	top = filepath.Join(top, kind)
	if err := os.MkdirAll(top, 0o755); err != nil {
		return "", nil, err
	}
	unlock, err := lock(filepath.Join(top, ".lock"))
	if err != nil {
		return "", nil, err
	}
	dir = filepath.Join(top, "scratch")
	release = func() error {
		defer unlock()
		return os.RemoveAll(dir)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
		return "", nil, errors.Join(err, release())
	}
	return dir, release, nil
}

func lock(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// prune removes all but the newest n results below top.
func prune(top string, n int) error {
	entries, err := os.ReadDir(top)
	if err != nil {
		return err
	}
	var dirs []fs.FileInfo
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() && e.Name()[0] != '.' {
			dirs = append(dirs, info)
		}
	}
	slices.SortFunc(dirs, func(a, b fs.FileInfo) int { return cmp.Compare(b.ModTime().UnixNano(), a.ModTime().UnixNano()) })
	for _, d := range dirs[min(n, len(dirs)):] {
		if err := os.RemoveAll(filepath.Join(top, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// A Key is the hash of everything that a result depends on.
type Key struct{ sum hash.Hash }

// NewKey starts a key from texts: versions, options, other keys.
func NewKey(texts ...string) Key {
	k := Key{sha256.New()}
	for _, t := range texts {
		fmt.Fprintf(k.sum, "text %d %s\n", len(t), t)
	}
	return k
}

// String is the key's name in the cache.
func (k Key) String() string { return hex.EncodeToString(k.sum.Sum(nil))[:16] }

// AddFile adds the content of a file.
func (k Key) AddFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	fmt.Fprintf(k.sum, "file %x\n", h.Sum(nil))
	return nil
}

// AddTree adds every file of a tree: its path, mode and content.
func (k Key) AddTree(tree fs.FS) error {
	return fs.WalkDir(tree, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(k.sum, "path %q %x\n", path, sha256.Sum256(data))
		return nil
	})
}
