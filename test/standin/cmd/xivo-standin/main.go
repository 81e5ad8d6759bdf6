// Command xivo-standin is a stand-in for the XiVO daemons that the lab cannot
// have, those of the release that the machine's version file names. It is not
// XiVO. Under the names xivo-service and wazo-service it is that command.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/xivo-mesh/packer-plugin-xivo/test/standin"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	args := os.Args[1:]
	if strings.HasSuffix(filepath.Base(os.Args[0]), "-service") {
		args = append([]string{"service"}, args...)
	}
	os.Exit(run(ctx, args, os.Getenv, os.Stdout, os.Stderr))
}

const usage = `xivo-standin: stand-ins for XiVO's daemons, for tests. This is not XiVO.

  xivo-standin confd                      xivo-confd: HTTPS 9486, HTTP 9487 on loopback
  xivo-standin dird                       xivo-dird: HTTPS 9489
  xivo-standin ctid                       xivo-ctid: HTTP 9495, clients 5003; from 16.02 on needs XIVO_UUID in the environment
  xivo-standin service ACTION [LIST]      xivo-service {status|restart|stop|start|enable|disable} [default|xivo|all|xivo-nomonit]
  xivo-standin client watch UUID USER...  subscribe to users of the XiVO with that UUID, print every line received
  xivo-standin client set USER STATUS     change the status of a user of the XiVO connected to
  xivo-standin units FOLDER               write the systemd units of the daemons into a folder

Each takes -h.
`

var errUsage = errors.New("wrong usage")

// invocation is one run of the command, of which a stand-in takes what it needs.
type invocation struct {
	env            func(string) string
	stdout, stderr io.Writer
	log            *slog.Logger
	flags          *flag.FlagSet
	ready          func([]net.Addr)
}

// commands are those that have flags, by their names. Each declares them, and
// returns what runs once they are parsed.
var commands = map[string]func(*invocation) func(context.Context) error{
	"confd":  confd,
	"dird":   dird,
	"ctid":   ctid,
	"client": client,
	"units":  units,
}

// run is the whole command. The exit code is 2 for wrong usage, 1 for a
// failure, and that of xivo-service for service.
func run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "-h" || args[0] == "--help" || args[0] == "help" {
		fmt.Fprint(stdout, usage)
		return 0
	}
	name := args[0]
	if name == "service" {
		return service(ctx, args[1:], stdout, stderr)
	}
	command, known := commands[name]
	if !known {
		fmt.Fprintf(stderr, "xivo-standin: unknown command %q\n%s", name, usage)
		return 2
	}

	i := newInvocation(name, env, stdout, stderr)
	do := command(i)
	if err := i.flags.Parse(args[1:]); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	switch err := do(ctx); {
	case errors.Is(err, errUsage):
		fmt.Fprint(stderr, usage)
		return 2
	case err != nil:
		fmt.Fprintln(stderr, "xivo-standin:", strings.TrimSpace(err.Error()))
		return 1
	}
	return 0
}

func newInvocation(name string, env func(string) string, stdout, stderr io.Writer) *invocation {
	log := slog.New(slog.NewTextHandler(stderr, nil)).With("standin", name)
	flags := flag.NewFlagSet("xivo-standin "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	return &invocation{
		env: env, stdout: stdout, stderr: stderr, log: log, flags: flags,
		ready: func(addresses []net.Addr) {
			log.Info("xivo-"+name+" stand-in is up", "addresses", addresses)
			if err := standin.NotifyReady(); err != nil {
				log.Error(err.Error())
			}
		},
	}
}

func confd(i *invocation) func(context.Context) error {
	c := &standin.Confd{Log: i.log}
	databaseFlag(i.flags, &c.Database)
	certificateFlags(i.flags, &c.Certificate, &c.Key)
	i.flags.StringVar(&c.HTTPS, "https", "0.0.0.0:9486", "`address` of HTTPS")
	i.flags.StringVar(&c.HTTP, "http", "127.0.0.1:9487", "`address` of HTTP")
	release := releaseFlag(i.flags)
	return func(ctx context.Context) (err error) {
		if c.Release, err = release(); err != nil {
			return err
		}
		return c.Run(ctx, i.ready)
	}
}

func dird(i *invocation) func(context.Context) error {
	d := &standin.Dird{Log: i.log}
	databaseFlag(i.flags, &d.Confgen.Database)
	certificateFlags(i.flags, &d.Certificate, &d.Key)
	i.flags.StringVar(&d.HTTPS, "https", "0.0.0.0:9489", "`address` of HTTPS")
	i.flags.StringVar(&d.Confgen.Cache, "cache", standin.DefaultConfgend, "`folder` of xivo-confgend's cache")
	d.Confgen.Log = i.log
	return func(ctx context.Context) error { return d.Run(ctx, i.ready) }
}

func ctid(i *invocation) func(context.Context) error {
	c := &standin.Ctid{UUID: i.env("XIVO_UUID"), Stderr: i.stderr, Log: i.log}
	databaseFlag(i.flags, &c.Database)
	i.flags.StringVar(&c.Config, "config", standin.DefaultCtidConfig, "main configuration `file`; conf.d is beside it")
	i.flags.StringVar(&c.CTI, "cti", "0.0.0.0:5003", "`address` of the clients' port")
	release := releaseFlag(i.flags)
	return func(ctx context.Context) (err error) {
		if c.Release, err = release(); err != nil {
			return err
		}
		return c.Run(ctx, i.ready)
	}
}

func client(i *invocation) func(context.Context) error {
	c := standin.Client{}
	i.flags.StringVar(&c.Address, "address", "localhost:5003", "`address` of the xivo-ctid stand-in")
	return func(ctx context.Context) error { return runClient(ctx, c, i.flags.Args(), i.stdout) }
}

func units(i *invocation) func(context.Context) error {
	return func(context.Context) error { return writeUnits(i.flags.Args()) }
}

// service has no flags: its arguments and its exit code are those of xivo-service.
func service(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	release, err := standin.ReadRelease(standin.VersionFile)
	if err != nil {
		fmt.Fprintln(stderr, "xivo-standin:", err)
		return 1
	}
	s := &standin.Service{Release: release, Marker: standin.DisabledMarker, Default: "/etc/default/xivo", Stdout: stdout}
	action := append(args, "", "")
	return s.Run(ctx, action[0], action[1])
}

// releaseFlag returns what tells the release, once the flags are parsed.
func releaseFlag(flags *flag.FlagSet) func() (standin.Release, error) {
	text := flags.String("release", "", "`release` of XiVO; the one in "+standin.VersionFile+" unless given")
	return func() (standin.Release, error) {
		if *text == "" {
			return standin.ReadRelease(standin.VersionFile)
		}
		return standin.ParseRelease(*text)
	}
}

func databaseFlag(flags *flag.FlagSet, dsn *string) {
	flags.StringVar(dsn, "database", standin.DefaultDatabase, "`DSN` of XiVO's database")
}

func certificateFlags(flags *flag.FlagSet, certificate, key *string) {
	flags.StringVar(certificate, "certificate", standin.DefaultCertificate, "`file` of the server's certificate")
	flags.StringVar(key, "key", standin.DefaultKey, "`file` of the server's key")
}

func runClient(ctx context.Context, c standin.Client, args []string, stdout io.Writer) error {
	if len(args) < 3 {
		return errUsage
	}
	switch args[0] {
	case "watch":
		var users []int
		for _, arg := range args[2:] {
			user, err := strconv.Atoi(arg)
			if err != nil {
				return errUsage
			}
			users = append(users, user)
		}
		return c.Watch(ctx, stdout, args[1], users...)
	case "set":
		user, err := strconv.Atoi(args[1])
		if err != nil || len(args) != 3 {
			return errUsage
		}
		return c.Set(ctx, user, args[2])
	}
	return errUsage
}

func writeUnits(args []string) error {
	if len(args) != 1 {
		return errUsage
	}
	for name, text := range standin.Units() {
		if err := os.WriteFile(filepath.Join(args[0], name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
