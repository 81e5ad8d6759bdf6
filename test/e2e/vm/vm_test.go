// Package vm proves the whole way in virtual machines: baked by Packer's
// standard builder for QEMU, booted by their own boot loader.
package vm

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

var virtual = flag.Bool("virtual", false, "run virtual machines, some 15 minutes where they are emulated")

// hang is how long anything may take in machines that may be emulated, three at
// once on two cores that others use too.
const hang = 4 * lab.Hang

// TestVirtualMachines goes through the life of one mesh; each step builds on the
// ones before, so the first that fails ends it.
func TestVirtualMachines(t *testing.T) {
	if !*virtual {
		t.Skip("runs virtual machines: run make test-vm")
	}
	l := newLife(t)
	t.Cleanup(func() { l.end(t) })
	steps := []struct {
		name string
		do   func(*testing.T)
	}{
		{"make a disk that boots by itself, with a XiVO on it", l.makeDisk},
		{"try what QEMU is to run on", l.tryAccelerator},
		{"bake it with the standard QEMU builder", l.bakeVirtual},
		{"the image holds nothing of its original", l.proveImage},
		{"bake it with the nspawn builder: the manifests are the same", l.bakeContainer},
		{"boot two clones by their boot loader; they become two nodes and join", l.bootTwo},
		{"searches on each find the user of the other", l.search},
		{"a status goes from each to the other, live", l.statuses},
		{"switch node 2 off; boot a copy of its disk, and its disk on other hardware", l.cloneAndMove},
		{"the copy becomes another node, and joins", l.copyJoins},
		{"searches on node 1 and the copy find each other's user", l.searchCopy},
		{"other hardware alone is a doubt: node 2 is who it was, held, and its telephony runs", l.movedIsHeld},
		{"a person says that it is the same machine: it is back in the mesh", l.sayItIsTheSame},
	}
	for i, step := range steps {
		start := time.Now()
		fmt.Printf("%d/%d %s\n", i+1, len(steps), step.name)
		if !t.Run(step.name, step.do) {
			t.FailNow()
		}
		fmt.Printf("    took %s\n", time.Since(start).Round(100*time.Millisecond))
	}
}

// life is what the steps hand on to each other.
type life struct {
	maker       *recipe.Maker
	scratch     string
	disk        recipe.Disk
	forced      string // accelerator, "" to let the template decide
	accelerator string
	image       recipe.Image

	hardware string // the DMI UUID of node 2 before it is moved

	mesh  *scenario.Mesh
	nodes map[int]*scenario.Node
	uuids map[int]string
	users map[int]scenario.User
}

func newLife(t *testing.T) *life {
	dir, err := cache.Dir()
	if err != nil {
		t.Fatal(err)
	}
	scratch, release, err := cache.Scratch("vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := release(); err != nil {
			t.Error(err)
		}
	})
	log, err := os.Create(filepath.Join(dir, "test-vm.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	maker, err := recipe.New(log)
	if err != nil {
		t.Fatal(err)
	}
	return &life{
		maker: maker, scratch: scratch, forced: os.Getenv("XIVO_ACCELERATOR"),
		nodes: map[int]*scenario.Node{}, uuids: map[int]string{}, users: map[int]scenario.User{},
	}
}

// end saves the machines' logs when the test failed, and ends them.
func (l *life) end(t *testing.T) {
	if l.mesh == nil {
		return
	}
	if t.Failed() {
		dir, err := cache.Dir()
		logs := filepath.Join(dir, "test-vm-failed")
		err = errors.Join(err, os.RemoveAll(logs), l.mesh.Lab.SaveLogs(context.Background(), logs))
		t.Logf("the journals and consoles are in %s (%v)", logs, err)
	}
	if err := l.mesh.Close(); err != nil {
		t.Error(err)
	}
}

func (l *life) makeDisk(t *testing.T) {
	var err error
	if l.disk, err = l.maker.Disk(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (l *life) tryAccelerator(t *testing.T) {
	l.accelerator = l.forced
	if l.accelerator == "" {
		var err error
		if l.accelerator, err = l.maker.Accelerator(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("    QEMU runs on %s\n", l.accelerator)
}

func (l *life) folder(t *testing.T, name string) string {
	dir := filepath.Join(l.scratch, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func (l *life) bakeVirtual(t *testing.T) {
	var err error
	if l.image, err = l.maker.BakeQEMU(t.Context(), l.disk, l.folder(t, "qemu"), l.forced); err != nil {
		t.Fatal(err)
	}
}

// proveImage searches the image's disk for all that was the original's own.
func (l *life) proveImage(t *testing.T) {
	proof, err := l.image.Prove(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range proof.Found {
		t.Errorf("it holds %s", found)
	}
	fmt.Printf("    %d MiB of a disk of %d were searched\n", proof.Read.Data>>20, proof.Read.Of>>20)
}

func (l *life) bakeContainer(t *testing.T) {
	image, err := l.maker.BakeNspawn(t.Context(), l.disk, l.folder(t, "nspawn"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(manifest(t, image), manifest(t, l.image)); diff != "" {
		t.Errorf("-nspawn +qemu:\n%s", diff)
	}
}

// ids are what differs between two boots of one machine: UUIDs and machine ids.
var ids = regexp.MustCompile(`[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}`)

// manifest is that of an image's seal, without time and ids, and without what was
// found of logs and temporary files: what boots by itself writes more of them.
func manifest(t *testing.T, image recipe.Image) map[string]any {
	raw, err := os.ReadFile(image.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(ids.ReplaceAll(raw, []byte("ID")), &m); err != nil {
		t.Fatalf("%s: %v", image.Manifest, err)
	}
	if at, _ := m["at"].(string); at == "" {
		t.Errorf("%s does not say when", image.Manifest)
	}
	delete(m, "at")
	for _, op := range m["operations"].([]any) {
		if op := op.(map[string]any); op["name"] == "logs" || op["name"] == "temporary-files" {
			delete(op, "removed")
		}
	}
	return m
}

func (l *life) bootTwo(t *testing.T) {
	virtual, err := lab.NewVirtual(t.Context(), lab.Hypervisor{
		Image:       l.image.QCOW2,
		Dir:         l.scratch,
		Accelerator: l.accelerator,
		Key:         l.disk.Key,
		KeyPublic:   l.disk.KeyPublic,
		Seed:        l.maker.Seed,
	})
	if err != nil {
		t.Fatal(err)
	}
	l.mesh = scenario.On(virtual)
	for n := 1; n <= 2; n++ {
		if l.nodes[n], err = l.mesh.Boot(t.Context(), n); err != nil {
			t.Fatal(err)
		}
	}
	for n := 1; n <= 2; n++ {
		l.settle(t, n)
	}
}

// settle waits until a node that boots is joined, and gives it a user.
func (l *life) settle(t *testing.T, n int) {
	if _, err := l.nodes[n].WaitJoined(deadline(t, hang), 1, time.Time{}); err != nil {
		t.Fatal(err)
	}
	l.peopled(t, n)
}

// peopled waits until a node's services run, and gives it a user.
func (l *life) peopled(t *testing.T, n int) {
	ctx := deadline(t, hang)
	node := l.nodes[n]
	if err := node.WaitRunning(ctx); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.uuids[n], err = node.UUID(ctx); err != nil {
		t.Fatal(err)
	}
	if l.users[n], err = node.AddUser(ctx, fmt.Sprint("User", n)); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("    node %d is %s, joined %s after its power-on\n", n, l.uuids[n], time.Since(node.Booted).Round(time.Second))
	for other, uuid := range l.uuids {
		if other != n && uuid == l.uuids[n] {
			t.Errorf("nodes %d and %d have one UUID, %s", other, n, uuid)
		}
	}
}

func (l *life) search(t *testing.T) { l.find(t, 1, 2) }

// find lets people of two nodes search for each other.
func (l *life) find(t *testing.T, a, b int) {
	err := errors.Join(
		l.nodes[a].Finds(deadline(t, hang), l.users[b], l.uuids[b]),
		l.nodes[b].Finds(deadline(t, hang), l.users[a], l.uuids[a]),
	)
	if err != nil {
		t.Error(err)
	}
}

func (l *life) statuses(t *testing.T) {
	clients := map[int]*scenario.Client{}
	for n := 1; n <= 2; n++ {
		var err error
		if clients[n], err = l.nodes[n].Connect(t.Context()); err != nil {
			t.Fatal(err)
		}
		defer clients[n].Close()
	}
	for from, to := range map[int]int{1: 2, 2: 1} {
		uuid, user, status := l.uuids[from], l.users[from].ID, fmt.Sprint("away", from)
		err := errors.Join(
			clients[to].Watch(uuid, user),
			clients[from].SetStatus(user, status),
			clients[to].Sees(deadline(t, hang), uuid, user, status))
		if err != nil {
			t.Error(err)
		}
	}
}

// cloneAndMove does what somebody does who clones the VM of a node (the copy gets
// a DMI UUID and a seed of its own), and who moves the node to a new VM.
func (l *life) cloneAndMove(t *testing.T) {
	const original, copied = 2, 3
	node := l.nodes[original]
	l.hardware = l.dmi(t, original)
	if err := node.Poweroff(deadline(t, hang)); err != nil {
		t.Fatal(err)
	}
	var err error
	if l.nodes[copied], err = l.mesh.BootCopy(t.Context(), copied, node); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(node.Move(uuid.New()), node.PowerOn(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func (l *life) copyJoins(t *testing.T) {
	// It knows of node 2, which is held, and says that it does not answer.
	err := lab.Wait(deadline(t, hang), "node 1 to answer the copy", func(ctx context.Context) (bool, error) {
		s, err := l.nodes[3].Status(ctx)
		if err == nil && (s.State != "degraded" || !s.Answered(l.uuids[1])) {
			err = fmt.Errorf("it is %s: %s", s.State, s.Why)
		}
		return err == nil, err
	})
	if err != nil {
		t.Fatal(err)
	}
	l.peopled(t, 3)
	if got := l.dmi(t, 3); got == "" || got == l.hardware {
		t.Errorf("the copy has the DMI UUID %q, the original %q", got, l.hardware)
	}
}

func (l *life) dmi(t *testing.T, n int) string {
	uuid, err := l.nodes[n].ReadFile(t.Context(), "/sys/class/dmi/id/product_uuid")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(uuid)
}

func (l *life) searchCopy(t *testing.T) { l.find(t, 1, 3) }

func (l *life) movedIsHeld(t *testing.T) {
	node := l.nodes[2]
	if err := node.WaitRunning(deadline(t, hang)); err != nil {
		t.Fatal(err)
	}
	now := l.dmi(t, 2)
	if now == l.hardware {
		t.Fatalf("its DMI UUID is still %s", now)
	}
	status, err := node.Status(t.Context())
	if err != nil || status.State != "waiting" || !strings.Contains(status.Why, l.hardware+" to "+now+", but not the instance id") {
		t.Errorf("it is %s: %s (%v)", status.State, status.Why, err)
	}
	if got, err := node.UUID(t.Context()); err != nil || got != l.uuids[2] {
		t.Errorf("its UUID is %s, it was %s (%v)", got, l.uuids[2], err)
	}
	if out, err := node.Run(t.Context(), "systemctl", "is-active", "postgresql", "rabbitmq-server", "consul", "xivo-confd", "xivo-dird", "xivo-ctid"); err != nil {
		t.Errorf("telephony is held back: %v: %s", err, out)
	}
	for _, n := range []int{1, 3} {
		s, err := l.nodes[n].Status(t.Context())
		for _, p := range s.Peers {
			if p.UUID == l.uuids[2] && p.Answered {
				t.Errorf("node %d gets answers from it, which may be a copy", n)
			}
		}
		if err != nil {
			t.Error(err)
		}
	}
}

func (l *life) sayItIsTheSame(t *testing.T) {
	node, said := l.nodes[2], time.Now()
	if out, err := node.Run(deadline(t, hang), "xivo-firstboot", "become", "--same"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := node.WaitJoined(deadline(t, hang), 2, said); err != nil {
		t.Fatal(err)
	}
	if got, err := node.UUID(t.Context()); err != nil || got != l.uuids[2] {
		t.Errorf("its UUID is %s, it was %s (%v)", got, l.uuids[2], err)
	}
	// Its other user is on the copy too, and found twice.
	var err error
	if l.users[2], err = node.AddUser(t.Context(), "Moved"); err != nil {
		t.Fatal(err)
	}
	l.find(t, 1, 2)
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
