package nspawn

import (
	"bytes"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/packer-plugin-sdk/multistep"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

// A host that lacks something is told all of it at once, before anything is made.
func TestPreflight(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, tc := range []struct {
		name   string
		config Config
		want   []string
	}{
		{"nothing is installed", Config{SourceImage: "disk.raw", Format: FormatRaw, Network: NetworkNone},
			[]string{"systemd-nspawn", "sfdisk", "qemu-img", "; on Debian: apt-get install ", " systemd-container ", " fdisk ", "qemu-utils"}},
		{"a root tar needs a boot loader", Config{SourceImage: "root.tar.zst", Format: FormatRaw, Network: NetworkNone},
			[]string{"extlinux", "mkfs.ext4", "zstd"}},
		{"a compressed root tar needs what unpacks it", Config{SourceImage: "root.tar.xz", Format: FormatRaw, Network: NetworkNone},
			[]string{", xz;", " xz-utils "}},
		{"an uplink needs a network stack", Config{SourceImage: "disk.raw", Format: FormatRaw, Network: NetworkUplink},
			[]string{"slirp4netns"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("PATH", t.TempDir())
			state := new(multistep.BasicStateBag)
			state.Put(stateUI, &packersdk.BasicUi{Reader: new(bytes.Reader), Writer: io.Discard, ErrorWriter: io.Discard})
			if action := (&stepPreflight{&tc.config}).Run(t.Context(), state); action != multistep.ActionHalt {
				t.Fatal("the build goes on")
			}
			err, _ := state.Get(stateError).(error)
			for _, want := range tc.want {
				if err == nil || !strings.Contains(err.Error()+" ", want) {
					t.Errorf("got %v, want it to say %q", err, want)
				}
			}
		})
	}
}

func TestPreflightTellsWhoIsNotRoot(t *testing.T) {
	if os.Geteuid() == 0 {
		const nobody = 65534
		if err := syscall.Seteuid(nobody); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Seteuid(0); err != nil {
				panic(err) // no test after this one would mean anything
			}
		})
	}
	state := new(multistep.BasicStateBag)
	state.Put(stateUI, &packersdk.BasicUi{Reader: new(bytes.Reader), Writer: io.Discard, ErrorWriter: io.Discard})
	action := (&stepPreflight{&Config{SourceImage: "disk.raw", Format: FormatRaw, Network: NetworkNone}}).Run(t.Context(), state)
	err, _ := state.Get(stateError).(error)
	if action != multistep.ActionHalt || err == nil || !strings.Contains(err.Error(), "run Packer as root (sudo -E packer build") {
		t.Errorf("got %v, %v", action, err)
	}
}
