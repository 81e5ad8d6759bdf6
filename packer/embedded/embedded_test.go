package embedded

import (
	"strings"
	"testing"
	"testing/fstest"
)

func TestFirstboot(t *testing.T) {
	released := fstest.MapFS{
		"embedded.go":                {},
		"linux_amd64/xivo-firstboot": {Data: []byte("of 64 bits")},
		"linux_386/xivo-firstboot":   {Data: []byte("of 32 bits")},
	}
	for _, tc := range []struct {
		name, arch string
		files      fstest.MapFS
		want, err  string
	}{
		{name: "a machine of 64 bits", arch: "amd64", files: released, want: "of 64 bits"},
		{name: "a machine of 32 bits", arch: "386", files: released, want: "of 32 bits"},
		{name: "another machine", arch: "arm64", files: released, err: "for 386, amd64 only, not for arm64: set firstboot_binary"},
		{name: "a plain go build", arch: "amd64", files: fstest.MapFS{"embedded.go": {}}, err: "built without xivo-firstboot: set firstboot_binary"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			binary, err := firstboot(tc.files, tc.arch)
			if string(binary) != tc.want {
				t.Errorf("got %q", binary)
			}
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("got %v, want %q", err, tc.err)
			}
		})
	}
}
