package seediso

import (
	"bytes"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/zclconf/go-cty/cty"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/packer/packertest"
)

const document = "#cloud-config\nxivo: {version: 1, peers: [], secret: \"six red {{ pens }} on a mat\"}\n"

// decode reads what stands between the braces of the post-processor's block,
// as Packer does; $document stands for the document.
func decode(t *testing.T, body string) cty.Value {
	t.Helper()
	return packertest.Decode(t, new(PostProcessor).ConfigSpec(), strings.ReplaceAll(body, "$document", strconv.Quote(document)))
}

const two = `
user_data = $document
node {
  hostname = "xivo-lyon"
}
node {
  hostname    = "XiVO-Paris.example.com"
  instance_id = "paris-2"
  interface   = "eth0"
  address     = "192.168.1.22/24"
  gateway     = "192.168.1.1"
  nameservers = ["9.9.9.9", "192.168.1.1"]
}
`

// run gives the post-processor an artifact with the given files, and returns
// what it showed, with the folder as DIR.
func run(t *testing.T, dir, body string, files ...string) string {
	t.Helper()
	var p PostProcessor
	if err := p.Configure(map[string]string{"packer_build_name": "xivo"}, decode(t, body)); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	ui := &packersdk.BasicUi{Reader: strings.NewReader(""), Writer: &shown, ErrorWriter: &shown}
	artifact := &packersdk.MockArtifact{FilesValue: files}
	out, keep, force, err := p.PostProcess(t.Context(), ui, artifact)
	if err != nil {
		t.Fatal(err)
	}
	if out != packersdk.Artifact(artifact) || !keep || !force {
		t.Errorf("the artifact is not handed on and kept: %v, %v, %v", out, keep, force)
	}
	if artifact.DestroyCalled {
		t.Error("the artifact was destroyed")
	}
	return strings.ReplaceAll(shown.String(), dir, "DIR")
}

func TestPostProcess(t *testing.T) {
	qcow2 := append([]byte("QFI\xfb"), make([]byte, 1020)...)
	raw := make([]byte, 1024)
	raw[510], raw[511] = 0x55, 0xaa
	for name, tc := range map[string]struct {
		settings string
		files    map[string][]byte
	}{
		"qcow2":          {"", map[string][]byte{"packer-xivo": qcow2, "a-manifest.json": []byte("{}")}},
		"raw-on-bridge":  {`bridge = "br0"`, map[string][]byte{"it's one.raw": raw}},
		"no-disk":        {"", map[string][]byte{"manifest.json": make([]byte, 2048)}},
		"image-of-yours": {`image = "DIR/other"`, map[string][]byte{"packer-xivo": qcow2, "other": raw}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var files []string
			for name, content := range tc.files {
				name = filepath.Join(dir, name)
				if err := os.WriteFile(name, content, 0o644); err != nil {
					t.Fatal(err)
				}
				files = append(files, name)
			}
			got := run(t, dir, two+strings.ReplaceAll(tc.settings, "DIR", dir)+"\noutput_directory = \""+dir+"/seeds\"\n", files...)
			if strings.Contains(got, "horse") {
				t.Errorf("the secret is shown:\n%s", got)
			}
			packertest.Golden(t, filepath.Join("testdata", name+".txt"), got)
		})
	}
}

// What is shown for QEMU is run by a shell, over and over, with programs that
// imitate QEMU's: a machine writes its disk's content and a line of its own.
func TestAMachineKeepsItsDiskAndItsNameMayGoToAnother(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	for name, script := range map[string]string{
		"qemu-img": `[ "$1" = convert ] || exit 1
while [ $# -gt 2 ]; do shift; done
tail -c +513 "$1" >"$2"
[ ! -e "$(dirname "$1")/full" ]`,
		"qemu-system-x86_64": `while [ "$1" != -drive ]; do shift; done
disk=${2#file=}; disk=${disk%%,*}
printf '+written' >>"$disk"; cat "$disk"`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "it's one")
	bake := func(content string) {
		t.Helper()
		if err := os.WriteFile(image, append(append([]byte("QFI\xfb"), make([]byte, 508)...), content...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(node string) string {
		t.Helper()
		return run(t, "$", "user_data = $document\noutput_directory = \""+dir+"/seeds\"\nnode {\nhostname = \"lyon\"\n"+node+"\n}\n", image)
	}
	boot := func(shown string) string {
		t.Helper()
		_, line, _ := strings.Cut(shown, "QEMU:")
		line, _, _ = strings.Cut(line, "\n")
		cmd := exec.Command("sh", "-c", line)
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			return strings.TrimSpace(string(out) + " " + err.Error())
		}
		return string(out)
	}
	full := filepath.Join(dir, "full")
	if err := os.WriteFile(full, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bake("first")
	line := shown("")
	if got := boot(line); got != "exit status 1" {
		t.Fatalf("a machine boots without a whole disk: %q", got)
	}
	if err := os.Remove(full); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(line, "is there already") {
		t.Errorf("a disk that was never whole is kept:\n%s", line)
	}
	for _, want := range []string{"first+written", "first+written+written"} {
		if got := boot(line); got != want {
			t.Fatalf("the machine has %q, want %q", got, want)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "seeds/i-lyon.qcow2")); err != nil || st.Mode() != 0o600 {
		t.Errorf("others may read the disk: %v, %v", st, err)
	}
	bake("second") // in the place of the first
	line = shown("")
	if !strings.Contains(line, "i-lyon.qcow2 is there already") {
		t.Errorf("that the new image is not used is not told:\n%s", line)
	}
	if got := boot(line); got != "first+written+written+written" {
		t.Errorf("the machine has %q after another bake", got)
	}
	if got := boot(shown(`instance_id = "lyon-2"`)); got != "second+written" {
		t.Errorf("another machine of that name has %q", got)
	}
}

func TestSeedsAreNoCloudsAndPrivate(t *testing.T) {
	dir := t.TempDir()
	seeds := filepath.Join(dir, "seeds")
	body := two + `output_directory = "` + seeds + `"`
	run(t, dir, body)
	run(t, dir, body) // again, over the first

	entries, err := os.ReadDir(seeds)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if st, _ := e.Info(); st.Mode() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), st.Mode())
		} else if st.Size()%sectorSize != 0 {
			t.Errorf("%s ends within a sector: %d bytes", e.Name(), st.Size())
		}
	}
	if diff := cmp.Diff([]string{"xivo-lyon.iso", "xivo-paris.example.com.iso"}, names); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if st, _ := os.Stat(seeds); st.Mode().Perm() != 0o700 {
		t.Errorf("the folder has mode %v", st.Mode())
	}

	label, files := open(t, filepath.Join(seeds, "xivo-paris.example.com.iso"))
	if label != "cidata" {
		t.Errorf("label %q", label)
	}
	if diff := cmp.Diff(map[string]string{
		"meta-data":      "instance-id: paris-2\nlocal-hostname: XiVO-Paris.example.com\n",
		"user-data":      document,
		"network-config": files["network-config"],
	}, files); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, want := range []string{"name: eth0", "address: 192.168.1.22/24", "gateway: 192.168.1.1", "- 9.9.9.9"} {
		if !strings.Contains(files["network-config"], want) {
			t.Errorf("%q is not in:\n%s", want, files["network-config"])
		}
	}
	if _, files = open(t, filepath.Join(seeds, "xivo-lyon.iso")); files["network-config"] != "" || files["meta-data"] != "instance-id: i-xivo-lyon\nlocal-hostname: xivo-lyon\n" {
		t.Errorf("%q", files)
	}
}

// open reads a seed with Rock Ridge, as Linux does.
func open(t *testing.T, name string) (label string, files map[string]string) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	image, err := iso9660.Read(file.New(f, true), 0, 0, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := fs.ReadDir(image, ".")
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, e := range entries {
		content, err := fs.ReadFile(image, e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if st, err := e.Info(); err != nil || st.Mode() != 0o600 {
			t.Errorf("%s in %s has mode %v, %v", e.Name(), name, st.Mode(), err)
		}
		files[e.Name()] = string(content)
	}
	return strings.TrimRight(image.Label(), " \x00"), files
}

// The kernel has its own mind about names. Where it cannot read CD-ROMs, the
// test is skipped.
func TestLinuxSeesTheNames(t *testing.T) {
	if known, err := os.ReadFile("/proc/filesystems"); err != nil || os.Geteuid() != 0 || !strings.Contains(string(known), "iso9660") {
		t.Skip("needs root, and a kernel with iso9660")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	name := filepath.Join(t.TempDir(), "seed.iso")
	node := cloudinit.SeedNode{InstanceID: "i-1", Hostname: "a", Interface: "eth0", Address: netip.MustParsePrefix("10.0.0.1/8"), UserData: []byte(document)}
	if err := writeImage(name, node); err != nil {
		t.Fatal(err)
	}
	// In a mount namespace of its own: nothing is left mounted.
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `mount -o loop,ro "$1" "$2"; stat -c '%n %a' -- "$2"/* | sed 's:.*/::'`, "sh", name, t.TempDir())
	got, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	if want := "meta-data 600\nnetwork-config 600\nuser-data 600\n"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// cloud-init asks blkid for file systems with the label.
func TestBlkidFindsTheLabel(t *testing.T) {
	blkid, err := exec.LookPath("blkid")
	if err != nil {
		if blkid, err = exec.LookPath("/usr/sbin/blkid"); err != nil {
			t.Skip("no blkid here")
		}
	}
	name := filepath.Join(t.TempDir(), "seed.iso")
	if err := writeImage(name, cloudinit.SeedNode{InstanceID: "i-1", Hostname: "a", UserData: []byte(document)}); err != nil {
		t.Fatal(err)
	}
	got, err := exec.Command(blkid, "-p", "-o", "export", name).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	for _, want := range []string{"LABEL=cidata\n", "TYPE=iso9660\n"} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%q is not in:\n%s", want, got)
		}
	}
}

func TestASeedThatFailsLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := writeImage(filepath.Join(dir, "seed.iso"), cloudinit.SeedNode{InstanceID: "nocloud", Hostname: "a"}); err == nil {
		t.Fatal("accepted")
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestProblemsAreThoseOfAttributes(t *testing.T) {
	const shared = "user_data = $document\n"
	node := func(lines ...string) string { return "node {\n" + strings.Join(lines, "\n") + "\n}\n" }
	const a = `hostname = "a"`
	for name, tc := range map[string]struct{ body, want string }{
		"no node":                            {shared, "node: there is none"},
		"no host name":                       {shared + node(), "node[0].hostname: is missing"},
		"no host name that is a path":        {shared + node(`hostname = "../a"`), `node[0].hostname: "../a" is not a host name`},
		"two nodes of a name":                {shared + node(a) + node(`hostname = "A"`), `node[1].hostname: "A" is that of node[0]`},
		"two nodes of an instance":           {shared + node(a) + node(`hostname = "b"`, `instance_id = "i-a"`), `node[1].instance_id: "i-a" is that of node[0]`},
		"an instance that is a path":         {shared + node(a, `instance_id = "a/b"`), "node[0].instance_id:"},
		"no user data":                       {node(a), "node[0].user_data: is missing"},
		"user data that cloud-init ignores":  {node(a, `user_data = "version: 1"`), "node[0].user_data: does not start with #cloud-config"},
		"user data without our document":     {`user_data = "#cloud-config\npackages: []\n"` + "\n" + node(a), "user_data: has no key `xivo`"},
		"a mistake in the document":          {`user_data = "#cloud-config\nxivo:\n  version: 1\n  peers: [a b]\n  secret: six red {{ pens }} on a mat\n"` + "\n" + node(a), `user_data: line 4: xivo.peers[0]: "a b" is not a host name`},
		"an address without its network":     {shared + node(a, `interface = "eth0"`, `address = "10.0.0.1"`), "node[0].address:"},
		"an address for no interface":        {shared + node(a, `address = "10.0.0.1/8"`), "node[0].interface: is missing"},
		"a gateway for no address":           {shared + node(a, `gateway = "10.0.0.1"`), "node[0].address: is missing"},
		"a gateway that is none":             {shared + node(a, `interface = "eth0"`, `address = "10.0.0.2/8"`, `gateway = "gw"`), `node[0].gateway: "gw"`},
		"a name server that is none":         {shared + node(a, `interface = "eth0"`, `address = "10.0.0.2/8"`, `nameservers = ["9.9.9.9", "dns"]`), `node[0].nameservers[1]: "dns"`},
		"a bridge that is an option":         {shared + node(a) + `bridge = "br0,x=y"`, "bridge:"},
		"a folder that would end the option": {shared + node(a) + `output_directory = "a,b"`, "output_directory:"},
	} {
		t.Run(name, func(t *testing.T) {
			err := new(PostProcessor).Configure(decode(t, tc.body))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want an error that says %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "horse") {
				t.Errorf("the secret is in: %v", err)
			}
		})
	}
}

func TestWhatIsNotKnownYetIsCheckedLater(t *testing.T) {
	err := new(PostProcessor).Configure(decode(t, `
user_data = "<unknown>"
node {
  hostname = "<unknown>"
}
node {
  hostname    = "<unknown>"
  instance_id = "<unknown>"
  interface   = "<unknown>"
  address     = "<unknown>"
  gateway     = "<unknown>"
  nameservers = ["<unknown>"]
}`))
	if err != nil {
		t.Error(err)
	}
}

func TestAnImageThatIsNoneIsToldBeforeAnythingIsWritten(t *testing.T) {
	dir := t.TempDir()
	var p PostProcessor
	err := p.Configure(decode(t, two+`image = "postprocessor.go"`+"\n"+`output_directory = "`+dir+`/seeds"`))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, err = p.PostProcess(t.Context(), packersdk.TestUi(t), new(packersdk.MockArtifact)); err == nil || !strings.Contains(err.Error(), "image: postprocessor.go is neither") {
		t.Errorf("got %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}
