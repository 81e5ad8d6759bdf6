// Command dist builds what is released of this checkout:
//
//   - a zip of the plugin for each platform, with xivo-firstboot for both
//     architectures of XiVO's machines inside, named as `packer init` wants it,
//     and its list of checksums;
//   - a Debian package of xivo-firstboot for each of the two;
//   - SHA256SUMS of all of them.
//
// The same sources give the same bytes, wherever and whenever: the only date in
// them is $SOURCE_DATE_EPOCH, or else that of the last commit.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dist:", err)
		os.Exit(1)
	}
}

// allPlatforms are those that the plugin is released for.
const allPlatforms = "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64"

// release is one run of this program.
type release struct {
	out    string // folder of the results
	tmp    string // removed in the end
	native string // xivo-firstboot for this machine, which prints the completions
	date   time.Time
	log    io.Writer
}

func run(ctx context.Context, args []string, log io.Writer) (err error) {
	flags := flag.NewFlagSet("dist", flag.ContinueOnError)
	out := flags.String("out", "dist/release", "folder of the results; what is in it is removed")
	platforms := flags.String("platforms", allPlatforms, "what the plugin is built for, separated by commas")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if _, err := os.Stat("go.mod"); err != nil {
		return errors.New("run it in the top folder of the checkout: make dist")
	}

	r := &release{log: log}
	if r.out, err = filepath.Abs(*out); err != nil {
		return err
	}
	if r.date, err = sourceDate(ctx); err != nil {
		return err
	}
	if r.tmp, err = os.MkdirTemp("", "dist-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(r.tmp)) }()
	if err := errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755)); err != nil {
		return err
	}
	if err := r.plugins(ctx, *platforms); err != nil {
		return err
	}
	if err := r.debianPackages(ctx); err != nil {
		return err
	}
	return r.sums("SHA256SUMS", "*")
}

// plugins makes the plugin for each of the platforms, which commas separate, and
// the list of their checksums.
func (r *release) plugins(ctx context.Context, platforms string) error {
	if err := r.embed(ctx); err != nil {
		return err
	}
	for platform := range strings.SplitSeq(platforms, ",") {
		goos, goarch, ok := strings.Cut(platform, "/")
		if !ok {
			return fmt.Errorf("%q is not a platform, such as linux/amd64", platform)
		}
		if err := r.plugin(ctx, goos, goarch); err != nil {
			return fmt.Errorf("the plugin for %s: %w", platform, err)
		}
	}
	// Packer reads this one, and wants nothing but plugins in it.
	return r.sums(pluginName()+"_SHA256SUMS", "*.zip")
}

// debianPackages makes the package of xivo-firstboot for each architecture that
// XiVO's machines have.
func (r *release) debianPackages(ctx context.Context) error {
	r.native = filepath.Join(r.tmp, "xivo-firstboot")
	if err := r.build(ctx, runtime.GOOS, runtime.GOARCH, "", r.native, "./cmd/xivo-firstboot"); err != nil {
		return err
	}
	for _, arch := range architectures {
		if err := r.packDebian(ctx, arch); err != nil {
			return fmt.Errorf("the Debian package for %s: %w", arch.debian, err)
		}
	}
	return nil
}

// sourceDate is the date that the results have.
func sourceDate(ctx context.Context) (time.Time, error) {
	text := os.Getenv("SOURCE_DATE_EPOCH")
	if text == "" {
		out, err := exec.CommandContext(ctx, "git", "log", "-1", "--format=%ct").Output()
		if err != nil {
			return time.Time{}, fmt.Errorf("the date of the last commit: %w; outside of a git checkout set SOURCE_DATE_EPOCH", err)
		}
		text = strings.TrimSpace(string(out))
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
	}
	return time.Unix(seconds, 0).UTC(), nil
}

// build builds a static program from which neither the place nor the moment
// can be told.
func (r *release) build(ctx context.Context, goos, goarch, ldflags, out, pkg string) error {
	fmt.Fprintf(r.log, "building %s for %s/%s\n", filepath.Base(pkg), goos, goarch)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w "+ldflags, "-o", out, pkg)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch,
		"CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOWORK=off", "GOEXPERIMENT=", "GOAMD64=v1", "GO386=sse2", "GOARM64=v8.0")
	return r.finish(cmd)
}

// finish runs a command to its end. Its output is shown in the error alone.
func (r *release) finish(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
