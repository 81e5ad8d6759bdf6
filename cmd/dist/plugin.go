package main

import (
	"archive/zip"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/hashicorp/packer-plugin-sdk/plugin"

	"github.com/xivo-mesh/packer-plugin-xivo/packer/version"
)

// pluginName begins the names of the plugin's files.
func pluginName() string { return "packer-plugin-xivo_v" + version.Version.String() }

// apiVersion is of the protocol between Packer and its plugins.
func apiVersion() string { return "x" + plugin.APIVersionMajor + "." + plugin.APIVersionMinor }

// embed builds xivo-firstboot to where the plugin takes it from, and removes
// any other build of it.
func (r *release) embed(ctx context.Context) error {
	old, err := filepath.Glob("packer/embedded/linux_*")
	if err != nil {
		return err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	for _, arch := range architectures {
		if err := r.build(ctx, "linux", arch.golang, "-X main.version="+version.Version.String(), arch.firstboot(), "./cmd/xivo-firstboot"); err != nil {
			return err
		}
	}
	return nil
}

// plugin builds it for a platform and packs it as Packer's getter wants it: the
// zip and the program in it have the same name.
func (r *release) plugin(ctx context.Context, goos, goarch string) error {
	name := fmt.Sprintf("%s_%s_%s_%s", pluginName(), apiVersion(), goos, goarch)
	program := filepath.Join(r.tmp, name)
	if err := r.build(ctx, goos, goarch, "", program, "./cmd/packer-plugin-xivo"); err != nil {
		return err
	}
	if goos == runtime.GOOS && goarch == runtime.GOARCH {
		if err := checkDescription(ctx, program); err != nil {
			return err
		}
	}
	return writeZip(filepath.Join(r.out, name+".zip"), r.date,
		zipEntry{name, program, 0o755}, zipEntry{"LICENSE", "LICENSE", 0o644})
}

// checkDescription asks the plugin what Packer asks when it installs it: a
// plugin whose answer is not what its name says is refused.
func checkDescription(ctx context.Context, program string) error {
	out, err := exec.CommandContext(ctx, program, "describe").Output()
	if err != nil {
		return fmt.Errorf("describe: %w", err)
	}
	var said struct {
		Version    string
		APIVersion string `json:"api_version"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		return fmt.Errorf("describe: %w: %s", err, out)
	}
	if said.Version != version.Version.String() || said.APIVersion != apiVersion() {
		return fmt.Errorf("describe says version %s and API %s; want %s and %s", said.Version, said.APIVersion, version.Version, apiVersion())
	}
	return nil
}

// zipEntry is a file that goes into a zip.
type zipEntry struct {
	name, from string
	mode       os.FileMode
}

func writeZip(to string, date time.Time, files ...zipEntry) (err error) {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z := zip.NewWriter(f)
	for _, file := range files {
		header := &zip.FileHeader{Name: file.name, Method: zip.Deflate, Modified: date}
		header.SetMode(file.mode)
		w, err := z.CreateHeader(header)
		if err != nil {
			return err
		}
		if err := copyTo(w, file.from); err != nil {
			return err
		}
	}
	return z.Close()
}

func copyTo(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// sums writes the checksums of the results that match a pattern, as sha256sum
// prints them.
func (r *release) sums(name, pattern string) error {
	files, err := filepath.Glob(filepath.Join(r.out, pattern))
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Compare(filepath.Base(a), filepath.Base(b)) })
	var text bytes.Buffer
	for _, file := range files {
		h := sha256.New()
		if err := copyTo(h, file); err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", h.Sum(nil), filepath.Base(file))
	}
	return os.WriteFile(filepath.Join(r.out, name), text.Bytes(), 0o644)
}
