// Command demo shows the whole way on this machine: it bakes a golden image,
// boots clones of it, and observes as an end user would that they became one
// mesh (scenario.Story). It ends with 0 only if all of that was seen and nothing
// was left behind.
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
	var left cleanUpError
	switch {
	case err == nil:
	case interrupted && !errors.As(err, &left):
		fmt.Fprintln(os.Stderr, "demo: interrupted; everything that it started is gone")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is what its parts hand on to each other.
type demo struct {
	out   io.Writer
	log   *os.File
	maker *recipe.Maker
	image recipe.Image
	story *scenario.Story
	place *lab.Published // where make shell finds the machines; nil unless they are kept
	run   *lab.Run
}

// prepare are the steps that come before the story: they make the image.
func (d *demo) prepare() []scenario.Step {
	return []scenario.Step{
		{Name: "install what is missing from Debian", Do: d.maker.Host},
		{Name: "build Consul and Packer", Do: d.tools},
		{Name: "make a Debian, and lay a XiVO 16.03 out on it", Do: d.base},
		{Name: "bake the golden image: packer build", Do: d.bake},
	}
}

func run(ctx context.Context, out io.Writer, keep bool) error {
	start := time.Now()
	d, err := newDemo(ctx, out, keep)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.announce(); err != nil {
		return err
	}

	steps := append(d.prepare(), d.story.Steps()...)
	total := len(steps) + 1 // the last one: nothing is left behind
	for i, s := range steps {
		if err = progress(out, signsOfLife(), i+1, total, s.Name, func() error { return s.Do(ctx) }); err != nil {
			break
		}
	}
	switch {
	case err == nil:
		err = d.report(ctx)
		if err == nil {
			fmt.Fprintf(out, "All of it was observed, in %s.\n\n", time.Since(start).Round(time.Second))
			err = d.keep(ctx)
		}
	case ctx.Err() == nil:
		err = d.keepLogs(ctx, err)
	}

	// Also after Ctrl-C, so not bound by ctx.
	endErr := progress(out, signsOfLife(), total, total, "stop everything, and leave nothing behind", func() error { return d.end(context.WithoutCancel(ctx)) })
	if endErr != nil {
		endErr = cleanUpError{endErr}
	}
	if err = errors.Join(err, endErr); err == nil && !keep {
		fmt.Fprintln(out, "\nTo keep the machines running and play with them: make demo KEEP=1")
	}
	return err
}

// cleanUpError says that the demo ended and left something; whether its story
// was observed is told apart from it.
type cleanUpError struct{ error }

func (e cleanUpError) Error() string { return "the clean-up failed: " + e.error.Error() }

func (e cleanUpError) Unwrap() error { return e.error }

// newDemo takes the place for machines that are kept before it does any work.
func newDemo(ctx context.Context, out io.Writer, keep bool) (_ *demo, err error) {
	d := &demo{out: out}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	if keep {
		if d.place, err = lab.Reserve(); err != nil {
			return nil, err
		}
	}
	if d.run, err = lab.BeginRun(ctx); err != nil {
		return nil, err
	}
	dir, err := cache.Dir()
	if err != nil {
		return nil, err
	}
	// A new file: a demo that runs at the same time keeps writing to its own.
	log := filepath.Join(dir, "demo.log")
	if err := os.Remove(log); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if d.log, err = os.Create(log); err != nil {
		return nil, err
	}
	if d.maker, err = recipe.New(d.log); err != nil {
		return nil, err
	}
	d.story = scenario.NewStory(func(ctx context.Context) (*scenario.Mesh, error) { return scenario.New(ctx, d.image.Raw) })
	return d, nil
}

func (d *demo) close() {
	if d.place != nil {
		d.place.Release()
	}
	if d.log != nil {
		d.log.Close()
	}
}

// announce says what is to come, and refuses when there is too little disk.
func (d *demo) announce() error {
	needs, err := estimate()
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "This bakes an image, boots three clones of it here, and watches them become one mesh.\n"+
		"It takes about %s on two idle cores%s, and needs %s of disk in %s and Go's caches.\n"+
		"What is built and baked is told in %s.\n\n", needs.takes, needs.why, gigabytes(needs.disk), needs.dir, d.log.Name())
	return needs.enough()
}

// needs is what a demo takes, told before it begins.
type needs struct {
	takes      string
	why        string
	dir        string // where the cache is
	disk, free uint64 // bytes
}

// enough is nil when the disk has room.
func (n needs) enough() error {
	if n.free >= n.disk {
		return nil
	}
	return fmt.Errorf("there are %s free in %s, and the demo needs %s: make room, or set XDG_CACHE_HOME to a folder that has it",
		gigabytes(n.free), n.dir, gigabytes(n.disk))
}

// estimate knows two cases: with all that the lab builds once in the cache, and
// without.
func estimate() (needs, error) {
	dir, err := cache.Dir()
	if err != nil {
		return needs{}, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return needs{}, err
	}
	n := needs{takes: laterTakes, dir: dir, disk: laterDisk}
	if !cache.Has("base") || !cache.Has("tools/consul") || !cache.Has("tools/packer") {
		n.takes, n.disk = firstTakes, firstDisk
		n.why = " this first time, which builds Consul and Packer from source and installs a Debian (later: about " + laterTakes + ")"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return needs{}, fmt.Errorf("free disk of %s: %w", dir, err)
	}
	n.free = fs.Bavail * uint64(fs.Bsize)
	return n, nil
}

// Measured on two cores with the caches of Go empty, and filled.
const (
	firstTakes, laterTakes = "20 minutes", "2 minutes"
	firstDisk, laterDisk   = 12 << 30, 4 << 30
)

func gigabytes(bytes uint64) string { return fmt.Sprintf("%.1f GB", float64(bytes)/1e9) }

// signsOfLife ticks as often as a step that takes long shows that it goes on.
func signsOfLife() <-chan time.Time { return time.Tick(3 * time.Second) }

// progress runs a step and prints its line: n/N name (took), with a dot for each
// tick before its end.
func progress(out io.Writer, tick <-chan time.Time, n, total int, name string, do func() error) error {
	fmt.Fprintf(out, "%2d/%d %s", n, total, name)
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	var err error
	dots := 0
	for running := true; running; {
		select {
		case err = <-done:
			running = false
		case <-tick:
			if dots++; dots == 1 {
				fmt.Fprint(out, " ")
			}
			fmt.Fprint(out, ".")
		}
	}
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

// report prints the mesh as it is and what was measured.
func (d *demo) report(ctx context.Context) error {
	fmt.Fprintln(d.out)
	w := tabwriter.NewWriter(d.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tUUID\tVERSION\tSTATE\tLINKS\tDIRECTORY SOURCES\tBOOT TO JOINED\tDAEMONS WAITED")
	for n := 1; n <= len(d.story.Nodes); n++ {
		node := d.story.Nodes[n]
		row, err := node.Row(ctx)
		if err != nil {
			return err
		}
		held, err := node.Held(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(w, strings.Join([]string{row.Node, row.UUID, row.Version, row.State, row.Links, row.Sources,
			d.story.Joined[n].Round(100 * time.Millisecond).String(), held.Round(10 * time.Millisecond).String()}, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "\nNode 1 took node 3 in %s after its services were up; nobody told it.\n\n", d.story.TakenIn[1].Round(100*time.Millisecond))
	return nil
}

// keepLogs saves what the machines said before they go, and tells where.
func (d *demo) keepLogs(ctx context.Context, err error) error {
	err = fmt.Errorf("%w\nwhat was built is told in %s", err, d.log.Name())
	if d.story.Mesh == nil {
		return err
	}
	logs := filepath.Join(filepath.Dir(d.log.Name()), "demo-failed")
	saveErr := errors.Join(os.RemoveAll(logs), d.story.Mesh.Lab.SaveLogs(ctx, logs))
	return errors.Join(fmt.Errorf("%w, the journal and the console of every machine are in %s", err, logs), saveErr)
}

// keep holds the machines until Ctrl-C when there is a place for them, and lets
// `make shell` find them.
func (d *demo) keep(ctx context.Context) error {
	if d.place == nil {
		return nil
	}
	shells := map[string][]string{}
	for n, node := range d.story.Nodes {
		argv, err := node.Argv("bash", "--login")
		if err != nil {
			return err
		}
		shells[fmt.Sprint(n)] = argv
	}
	if err := d.place.Announce(shells); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "The machines run until you press Ctrl-C here. In another terminal: make shell NODE=1\n"+
		"Then for example: xivo-firstboot status; journalctl -u xivo-mesh; rabbitmqctl federation_status\n\n")
	<-ctx.Done()
	return nil
}

// end stops the machines, and looks for what they left.
func (d *demo) end(ctx context.Context) error {
	d.story.Close()
	if d.story.Mesh != nil {
		if err := d.story.Mesh.Close(); err != nil {
			return err
		}
	}
	left, err := d.run.Leftovers(ctx)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("this run left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return err
}
