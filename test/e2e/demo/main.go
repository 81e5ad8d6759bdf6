// Command demo shows the whole way on this machine: it bakes a golden image,
// boots clones of it, and observes as an end user would that they became one
// mesh. It ends with 0 only if all of that was seen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/test/e2e/scenario"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/cache"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

func main() {
	// Whoever started us and is killed takes us along, and we all that we run.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	keep := flag.Bool("keep", false, "keep the machines running until Ctrl-C")
	flag.Parse()
	err := run(ctx, os.Stdout, *keep)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err == nil:
	case interrupted:
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything that it started is gone")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// How long things may take before the demo gives up, on two slow cores.
const (
	bootDeadline  = 5 * time.Minute
	proofDeadline = 2 * time.Minute
)

// demo is what the steps hand on to each other.
type demo struct {
	out   io.Writer
	maker *recipe.Maker
	image recipe.Image
	mesh  *scenario.Mesh

	nodes   map[int]*scenario.Node
	uuids   map[int]string
	users   map[int]scenario.User
	clients map[int]*scenario.Client
	joined  map[int]time.Duration // from power-on
	takenIn time.Duration         // node 3 by node 1, from its services being up
}

type step struct {
	name string
	do   func(context.Context) error
}

func (d *demo) steps() []step {
	return []step{
		{"install what is missing from Debian", d.maker.Host},
		{"build Consul and Packer", d.tools},
		{"make a Debian, and lay a XiVO 16.03 out on it", d.base},
		{"bake the golden image: packer build", d.bake},
		{"boot nodes 1 and 2, clones of it", d.bootTwo},
		{"node 1 and node 2 are joined", d.twoJoined},
		{"a user on each; one logs in on node 1 and stays", d.peopleOfTwo},
		{"boot node 3, with the same user data", d.bootThird},
		{"node 3 is joined, and nodes 1 and 2 took it in", d.thirdJoined},
		{"searches on node 3 find the users of nodes 1 and 2", d.searchFromThird},
		{"searches on nodes 1 and 2 find the user of node 3", d.searchForThird},
		{"a status goes from node 1 to node 3, live", d.statusToThird},
		{"a status goes from node 3 to node 1, live", d.statusToFirst},
		{"the client on node 1 was never dropped", d.stillConnected},
	}
}

func run(ctx context.Context, out io.Writer, keep bool) (err error) {
	traces, err := lab.BeginRun(ctx)
	if err != nil {
		return err
	}
	dir, err := cache.Dir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "demo.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	maker, err := recipe.New(log)
	if err != nil {
		return err
	}

	d := &demo{
		out: out, maker: maker,
		nodes: map[int]*scenario.Node{}, uuids: map[int]string{}, users: map[int]scenario.User{},
		clients: map[int]*scenario.Client{}, joined: map[int]time.Duration{},
	}
	steps := d.steps()
	total := len(steps) + 1 // the last one: nothing is left behind
	start := time.Now()
	for i, s := range steps {
		if err = progress(out, i+1, total, s.name, func() error { return s.do(ctx) }); err != nil {
			break
		}
	}
	switch {
	case err == nil:
		err = d.report(ctx)
		if err == nil && keep {
			err = d.keep(ctx)
		}
	case ctx.Err() == nil && d.mesh != nil:
		logs := filepath.Join(dir, "demo-failed")
		saveErr := errors.Join(os.RemoveAll(logs), d.mesh.Lab.SaveLogs(ctx, logs))
		err = errors.Join(fmt.Errorf("%w\nthe journal and the console of every machine are in %s, what was built is told in %s", err, logs, log.Name()), saveErr)
	}

	// Also after Ctrl-C, so not bound by ctx.
	endErr := progress(out, total, total, "stop everything, and leave nothing behind", func() error { return d.end(context.WithoutCancel(ctx), traces) })
	if err = errors.Join(err, endErr); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nAll of it was observed, in %s.\n", time.Since(start).Round(time.Second))
	if !keep {
		fmt.Fprintln(out, "To keep the machines running and play with them: make demo KEEP=1")
	}
	return nil
}

// progress runs a step and prints its line: n/N name (took).
func progress(out io.Writer, n, total int, name string, do func() error) error {
	fmt.Fprintf(out, "%2d/%d %s", n, total, name)
	start := time.Now()
	err := do()
	took := time.Since(start).Round(100 * time.Millisecond)
	if err != nil {
		fmt.Fprintf(out, ": FAILED (%s)\n", took)
		return fmt.Errorf("%s: %w", name, err)
	}
	fmt.Fprintf(out, " (%s)\n", took)
	return nil
}

func (d *demo) tools(ctx context.Context) error {
	for _, name := range []string{"consul", "packer"} {
		if _, err := d.maker.Tool(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) base(ctx context.Context) error {
	_, err := d.maker.XiVOTar(ctx, recipe.Version)
	return err
}

func (d *demo) bake(ctx context.Context) (err error) {
	d.image, err = d.maker.Bake(ctx)
	return err
}

func (d *demo) bootTwo(ctx context.Context) (err error) {
	if d.mesh, err = scenario.New(ctx, d.image.Raw); err != nil {
		return err
	}
	return errors.Join(d.boot(ctx, 1), d.boot(ctx, 2))
}

func (d *demo) bootThird(ctx context.Context) error { return d.boot(ctx, 3) }

func (d *demo) boot(ctx context.Context, n int) (err error) {
	d.nodes[n], err = d.mesh.Boot(ctx, n)
	return err
}

func (d *demo) twoJoined(ctx context.Context) error { return d.allJoined(ctx, 1, 2) }

// allJoined waits until the new nodes are joined with everybody who is there.
func (d *demo) allJoined(ctx context.Context, fresh ...int) error {
	joined := make([]time.Duration, len(fresh))
	wait, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	group, wait := errgroup.WithContext(wait)
	for i, n := range fresh {
		group.Go(func() error {
			_, err := d.nodes[n].WaitJoined(wait, len(d.nodes)-1, time.Time{})
			joined[i] = time.Since(d.nodes[n].Booted)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for i, n := range fresh {
		d.joined[n] = joined[i]
		uuid, err := d.nodes[n].UUID(ctx)
		if err != nil {
			return err
		}
		for other, its := range d.uuids {
			if its == uuid {
				return fmt.Errorf("node %d and node %d have one UUID, %s", n, other, uuid)
			}
		}
		d.uuids[n] = uuid
	}
	return nil
}

var firstnames = map[int]string{1: "Alice", 2: "Bruno", 3: "Chloe"}

func (d *demo) addUser(ctx context.Context, n int) (err error) {
	d.users[n], err = d.nodes[n].AddUser(ctx, firstnames[n])
	return err
}

func (d *demo) peopleOfTwo(ctx context.Context) (err error) {
	if err := errors.Join(d.addUser(ctx, 1), d.addUser(ctx, 2)); err != nil {
		return err
	}
	d.clients[1], err = d.nodes[1].Connect(ctx)
	if err != nil {
		return err
	}
	// A person at work: the own status, and a colleague's on the other node.
	return d.sends(ctx, 2, 1, "away")
}

func (d *demo) thirdJoined(ctx context.Context) error {
	var takenIn time.Time
	wait, cancel := context.WithTimeout(ctx, bootDeadline)
	defer cancel()
	group, wait := errgroup.WithContext(wait)
	group.Go(func() error { return d.allJoined(wait, 3) })
	group.Go(func() error {
		_, err := d.nodes[1].WaitJoined(wait, 2, time.Time{})
		takenIn = time.Now()
		return err
	})
	group.Go(func() error {
		_, err := d.nodes[2].WaitJoined(wait, 2, time.Time{})
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	up, err := d.nodes[3].ServicesUp(ctx)
	if err != nil {
		return err
	}
	d.takenIn = takenIn.Sub(up)
	return d.addUser(ctx, 3)
}

func (d *demo) searchFromThird(ctx context.Context) error {
	return errors.Join(d.finds(ctx, 3, 1), d.finds(ctx, 3, 2))
}

func (d *demo) searchForThird(ctx context.Context) error {
	return errors.Join(d.finds(ctx, 1, 3), d.finds(ctx, 2, 3))
}

func (d *demo) finds(ctx context.Context, on, of int) error {
	ctx, cancel := context.WithTimeout(ctx, proofDeadline)
	defer cancel()
	return d.nodes[on].Finds(ctx, d.users[of], d.uuids[of])
}

func (d *demo) statusToThird(ctx context.Context) (err error) {
	if d.clients[3], err = d.nodes[3].Connect(ctx); err != nil {
		return err
	}
	return d.sends(ctx, 1, 3, "donotdisturb")
}

func (d *demo) statusToFirst(ctx context.Context) error {
	return d.sends(ctx, 3, 1, "outtolunch")
}

// sends lets the user of one node change status, and the client that is
// connected to another see it. That client is the one that was there before.
func (d *demo) sends(ctx context.Context, from, to int, status string) error {
	ctx, cancel := context.WithTimeout(ctx, proofDeadline)
	defer cancel()
	watcher, uuid, user := d.clients[to], d.uuids[from], d.users[from].ID
	if err := watcher.Watch(uuid, user); err != nil {
		return err
	}
	// What the other node fetches when it is asked first: proof that it finds
	// the node at all, and that what comes next comes over the bus.
	const initial = "available"
	setter, err := d.nodes[from].Connect(ctx)
	if err != nil {
		return err
	}
	defer setter.Close()
	for _, s := range []string{initial, status} {
		if err := setter.SetStatus(user, s); err != nil {
			return err
		}
		if err := watcher.Sees(ctx, uuid, user, s); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) stillConnected(context.Context) error {
	return errors.Join(d.clients[1].Connected(), d.clients[3].Connected())
}

// report prints the mesh as it is and what was measured.
func (d *demo) report(ctx context.Context) error {
	fmt.Fprintln(d.out)
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tUUID\tVERSION\tSTATE\tLINKS\tDIRECTORY SOURCES\tBOOT TO JOINED\tDAEMONS WAITED")
	for n := 1; n <= len(d.nodes); n++ {
		row, err := d.nodes[n].Row(ctx)
		if err != nil {
			return err
		}
		held, err := d.nodes[n].Held(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(w, strings.Join([]string{row.Node, row.UUID, row.Version, row.State, row.Links, row.Sources,
			d.joined[n].Round(100 * time.Millisecond).String(), held.Round(10 * time.Millisecond).String()}, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nNode 1 took node 3 in %s after its services were up; nobody told it.\n\n", d.takenIn.Round(100*time.Millisecond))
	return nil
}

// keep holds the machines until Ctrl-C, and lets `make shell` find them.
func (d *demo) keep(ctx context.Context) error {
	commands := map[string][]string{}
	for n, node := range d.nodes {
		argv, err := node.Argv("bash", "--login")
		if err != nil {
			return err
		}
		commands[fmt.Sprint(n)] = argv
	}
	release, err := lab.Publish(commands)
	if err != nil {
		return err
	}
	defer release()
	fmt.Fprintf(d.out, "The machines run until you press Ctrl-C here. In another terminal: make shell NODE=1\n"+
		"Then for example: xivo-firstboot status; journalctl -u xivo-mesh; rabbitmqctl federation_status\n\n")
	<-ctx.Done()
	return nil
}

func (d *demo) end(ctx context.Context, run *lab.Run) error {
	for _, c := range d.clients {
		c.Close()
	}
	if d.mesh != nil {
		if err := d.mesh.Close(); err != nil {
			return err
		}
	}
	left, err := run.Leftovers(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("this run left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return err
}
