package sealing_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node/nodetest"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

func TestTemporaryFilesGoButFoldersOfServicesThatRun(t *testing.T) {
	n := aServer(t, map[string]string{
		"/tmp/script_1234.sh": "a provisioner's", "/tmp/.hidden": "x", "/var/tmp/a/b/c": "x",
		"/tmp/systemd-private-0123-ntp.service-abc/tmp/left": "x",
	})
	found, err := run(t, n, "temporary-files")
	if diff := cmp.Diff([]string{"temporary files (4)"}, found); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if left := slices.Collect(maps.Keys(nodetest.Files(t, n.Platform.Root))); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if _, err := os.Stat(n.Platform.Path("/tmp/systemd-private-0123-ntp.service-abc/tmp")); err != nil {
		t.Errorf("a service has lost its folder: %v", err)
	}
}

// What a daemon has open is on the disk until it ends, which is after the seal.
func TestJournaldHasNoFileOnTheDiskWhenTheJournalsGo(t *testing.T) {
	const flushed = "/run/systemd/journal/flushed"
	n := aServer(t, map[string]string{platform.VersionFile: "16.03\n", "/var/log/journal/2b8f/system.journal": "lines", flushed: ""})
	underSystemd(t, n)
	if _, err := run(t, n, "logs"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.Platform.Path(flushed)); err == nil {
		t.Error("journald goes on in /var/log/journal")
	}
	if restarted := nodetest.Read(t, n, "/restarted"); !strings.Contains(restarted, "systemd-journald") {
		t.Errorf("restarted: %q", restarted)
	}
}

func TestDisksOfOthersAreLeftAlone(t *testing.T) {
	for _, name := range []string{"swap", "fs-journal", "free-space"} {
		p := sealOf(t, name)
		n := aServer(t, nil)
		if e := n.Runner().Step(t.Context(), p, 0); e.Skipped == "" {
			t.Fatalf("%s was done from a folder, on the disks of this machine", name)
		}
		n.Platform.Root = "/"
		_, err := os.Stat("/run/systemd/container")
		if inContainer := err == nil; name != "fs-journal" && inContainer != (p.Steps[0].When(n) != "") {
			t.Errorf("%s: in a container: %t, and it says %q", name, inContainer, p.Steps[0].When(n))
		}
	}
}
