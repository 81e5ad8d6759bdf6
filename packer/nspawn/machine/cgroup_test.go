package machine

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCgroupHomes(t *testing.T) {
	const (
		v2      = "23 22 0:20 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
		unified = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
		systemd = "40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd\n"
		memory  = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
		partial = "40 31 0:37 /docker/4f /sys/fs/cgroup/systemd ro - cgroup cgroup rw,name=systemd\n"
	)
	for _, tc := range []struct {
		name, mounts, groups string
		want                 []string
	}{
		{"a host with cgroup2", v2, "0::/user.slice/session-1.scope\n",
			[]string{"/sys/fs/cgroup/user.slice/session-1.scope"}},
		{"a hybrid host", memory + systemd + unified, "9:name=systemd:/\n4:memory:/a\n0::/\n",
			[]string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"}},
		{"a container that sees a part", partial, "9:name=systemd:/docker/4f\n",
			[]string{"/sys/fs/cgroup/systemd"}},
		{"mounted twice", v2 + unified, "0::/\n", []string{"/sys/fs/cgroup"}},
		{"none of systemd's", memory, "4:memory:/a\n", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, parseCgroupHomes(tc.mounts, tc.groups)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRequireNamesThePackages(t *testing.T) {
	err := Require(Tool{"sh", "dash"}, Tool{"no-such-tool", "one"}, Tool{"/no/such/file.bin", "two"})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"no-such-tool", "/no/such/file.bin", "apt-get install one two"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
	if err := Require(Tool{"sh", "dash"}); err != nil {
		t.Error(err)
	}
}
