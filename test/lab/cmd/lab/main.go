// Command lab is what the Makefile does with the lab: it prepares this machine,
// runs the tests on it, and opens shells in machines that run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/xivo-mesh/packer-plugin-xivo/test/lab"
	"github.com/xivo-mesh/packer-plugin-xivo/test/lab/recipe"
)

const usage = `usage: lab test       make lint, all tests, some fuzzing, and nothing left behind
       lab crash      first boots that are killed a few hundred times
       lab vm         the whole way in virtual machines
       lab bench-bake bake one thing with both builders, and compare
       lab bake       bake the image, when its sources changed, and say where it is
       lab shell N    a shell in machine N of a demo that is kept running
`

// errUsage is for arguments that are not understood.
var errUsage = errors.New(strings.TrimSpace(usage))

// How long a package's tests may take before they count as hanging: many times
// what they take on two idle cores.
const (
	testTimeout = "30m"
	labTimeout  = "3h"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 2 && args[0] == "shell" {
		return lab.Shell(args[1])
	}
	if len(args) != 1 {
		return errUsage
	}
	// Whoever started us and is killed takes us along, and we all that we run.
	// Not for a shell: it becomes the process that was asked for.
	_ = unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(syscall.SIGTERM), 0, 0, 0)
	maker, err := recipe.New(stderr)
	if err != nil {
		return err
	}
	switch args[0] {
	case "test":
		return test(ctx, maker, stdout)
	case "crash":
		return crash(ctx, maker, stdout)
	case "vm":
		return vm(ctx, maker, stdout)
	case "bench-bake":
		return benchBake(ctx, maker, stdout)
	case "bake":
		if err := maker.Host(ctx); err != nil {
			return err
		}
		image, err := maker.Baked(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(stdout, image.QCOW2)
		return nil
	}
	return errUsage
}

// test runs everything that there is. The packages of the lab's own tests and of
// the end-to-end tests run alone: they look at what is left on this machine, they
// measure, and they fill two cores by themselves.
func test(ctx context.Context, maker *recipe.Maker, stdout io.Writer) error {
	start := time.Now()
	run, err := lab.BeginRun(ctx)
	if err != nil {
		return err
	}
	goTool, err := prepare(ctx, maker, stdout)
	if err != nil {
		return err
	}
	lint := exec.CommandContext(ctx, "make", "--no-print-directory", "-C", maker.Repo, "lint")
	lint.Stdout, lint.Stderr = stdout, os.Stderr
	if err := lint.Run(); err != nil {
		return fmt.Errorf("make lint: %w", err)
	}
	packages, err := packages(ctx, maker.Repo)
	if err != nil {
		return err
	}
	isAlone := func(pkg string) bool {
		return strings.HasSuffix(pkg, "/test/lab") || strings.Contains(pkg, "/test/e2e")
	}
	alone := slices.DeleteFunc(slices.Clone(packages), func(pkg string) bool { return !isAlone(pkg) })
	others := slices.DeleteFunc(packages, isAlone)

	// One failure does not hide another.
	err = errors.Join(
		goTool(append([]string{"test", "-timeout=" + testTimeout}, others...)...),
		fuzz(maker.Repo, goTool),
		goTool(append([]string{"test", "-timeout=" + labTimeout, "-count=1", "-p=1", "-parallel=2", "-v"}, alone...)...),
	)
	if err = errors.Join(err, clean(ctx, run)); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "all tests passed and left nothing behind (%s)\n", time.Since(start).Round(time.Second))
	return nil
}

// fuzz gives every fuzz target some seconds of inputs that nobody thought of.
func fuzz(repo string, goTool func(args ...string) error) error {
	target := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(`)
	var errs []error
	err := filepath.WalkDir(repo, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, match := range target.FindAllSubmatch(text, -1) {
			errs = append(errs, goTool("test", "-run=^$", fmt.Sprintf("-fuzz=^%s$", match[1]), "-fuzztime=5s", filepath.Dir(name)))
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// crash runs the one test that takes long when it is thorough.
func crash(ctx context.Context, maker *recipe.Maker, stdout io.Writer) error {
	goTool, err := prepare(ctx, maker, stdout)
	if err != nil {
		return err
	}
	return goTool("test", "-timeout="+labTimeout, "-count=1", "-v", "-run=^TestCrash$", "./test/e2e", "-kills=200")
}

// vm runs the test in virtual machines, which takes its time where they are
// emulated.
func vm(ctx context.Context, maker *recipe.Maker, stdout io.Writer) error {
	if err := maker.VMHost(ctx); err != nil {
		return err
	}
	run, err := lab.BeginRun(ctx)
	if err != nil {
		return err
	}
	goTool, err := prepare(ctx, maker, stdout)
	if err != nil {
		return err
	}
	err = goTool("test", "-timeout="+labTimeout, "-count=1", "-v", "./test/e2e/vm", "-virtual")
	return errors.Join(err, clean(ctx, run))
}

// clean fails when the run left anything on this machine, also after Ctrl-C.
func clean(ctx context.Context, run *lab.Run) error {
	left, err := run.Leftovers(context.WithoutCancel(ctx))
	if len(left) > 0 {
		err = fmt.Errorf("the tests left behind:\n  %s", strings.Join(left, "\n  "))
	}
	return err
}

// prepare makes what tests on machines and on real servers need, and returns
// how to run the go command with it.
func prepare(ctx context.Context, maker *recipe.Maker, stdout io.Writer) (goTool func(args ...string) error, err error) {
	if err := maker.Host(ctx); err != nil {
		return nil, err
	}
	base, err := maker.Base(ctx)
	if err != nil {
		return nil, err
	}
	consul, err := maker.Tool(ctx, "consul")
	if err != nil {
		return nil, err
	}
	packer, err := maker.Tool(ctx, "packer")
	if err != nil {
		return nil, err
	}
	old, err := maker.Tool(ctx, "packer-1.9.4")
	if err != nil {
		return nil, err
	}
	env := append(os.Environ(), "XIVO_PACKER_OLD="+old, "XIVO_LAB=1", "XIVO_SERVER_ROOT="+filepath.Join(base, "root"), "XIVO_CONSUL="+consul, "XIVO_PACKER="+packer)
	return func(args ...string) error {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir, cmd.Env = maker.Repo, env
		cmd.Stdout, cmd.Stderr = stdout, os.Stderr
		// To all of it: the go command does not pass it on to the tests, whose machines
		// would run for as long as they.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
		cmd.WaitDelay = time.Minute
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("go %s: %w", args[0], err)
		}
		return nil
	}, nil
}

func packages(ctx context.Context, repo string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "./...")
	cmd.Dir = repo
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	return strings.Fields(string(out)), nil
}
