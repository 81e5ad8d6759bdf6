package standin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// The lists of xivo-service, as far as the lab has such units, in the order in
// which they start.
var (
	xivoServices    = []string{"xivo-ctid", "xivo-dird"}
	defaultServices = append([]string{"xivo-confd"}, xivoServices...)
	allServices     = append([]string{"rabbitmq-server", "consul", "postgresql", "nginx"}, defaultServices...)
)

var serviceFilters = map[string][]string{
	"xivo":         xivoServices,
	"default":      defaultServices,
	"all":          allServices,
	"xivo-nomonit": xivoServices,
}

// Service stands in for the command xivo-service on systemd.
//
// Stopping closes SIP with a firewall rule, stops monit, and stops a list of
// services that has neither Consul nor RabbitMQ nor PostgreSQL in it unless
// "all" is asked for. Only starting takes the rule away again.
type Service struct {
	Release Release
	Marker  string // the file whose presence keeps the xivo list from starting
	Default string // /etc/default/xivo
	Stdout  io.Writer
	// Exec runs a command, returns what it printed and the code that it ended
	// with. Nil runs real ones.
	Exec func(ctx context.Context, name string, args ...string) (stdout string, code int)
}

// Run does an action on a list ("" is "default") and returns the exit code.
// An action that it does not know prints the usage and is a success.
func (s *Service) Run(ctx context.Context, action, filter string) int {
	if filter == "" {
		filter = "default"
	}
	services, ok := serviceFilters[filter]
	if !ok {
		fmt.Fprintf(s.Stdout, "Invalid service filter %q\n", filter)
		s.usage()
		return 0
	}
	monit := filter != "xivo-nomonit"
	services = s.existing(ctx, services)
	switch action {
	case "status", "monitor":
		return s.status(ctx, services)
	case "start":
		return s.start(ctx, services, monit)
	case "stop":
		s.stop(ctx, services, monit)
	case "restart", "force-reload":
		s.stop(ctx, services, monit)
		return s.start(ctx, services, monit)
	case "enable":
		fmt.Fprintln(s.Stdout, "Enabling XiVO services...")
		return s.setEnabled(ctx, true)
	case "disable":
		fmt.Fprintln(s.Stdout, "Disabling XiVO services...")
		return s.setEnabled(ctx, false)
	default:
		s.usage()
	}
	return 0
}

func (s *Service) usage() {
	fmt.Fprint(s.Stdout, `xivo-service stand-in
usage: xivo-service {status|restart|stop|start|enable|disable} [default|xivo|all|xivo-nomonit]
`)
}

// existing leaves out the units that this machine has not.
func (s *Service) existing(ctx context.Context, services []string) []string {
	return slices.DeleteFunc(slices.Clone(services), func(name string) bool {
		out, _ := s.exec(ctx, "systemctl", "show", "--property=LoadState", name+".service")
		return strings.TrimSpace(out) != "LoadState=loaded"
	})
}

func (s *Service) status(ctx context.Context, services []string) int {
	code := 0
	fmt.Fprintln(s.Stdout, "Checking services...")
	for _, name := range services {
		switch s.running(ctx, name) {
		case 0:
			fmt.Fprintf(s.Stdout, "\trunning\t\t%s\n", name)
		case 3:
			fmt.Fprintf(s.Stdout, "\tstopped\t\t%s\n", name)
			code = max(code, 1)
		default:
			fmt.Fprintf(s.Stdout, "\tfailed\t\t%s\n", name)
			code = 2
		}
	}
	return code
}

func (s *Service) running(ctx context.Context, name string) (code int) {
	_, code = s.exec(ctx, "systemctl", "status", name)
	return code
}

// start opens SIP at its end, also when a service does not start; what comes
// after that service, monit too, then stays down.
func (s *Service) start(ctx context.Context, services []string, monit bool) int {
	fmt.Fprintln(s.Stdout, "Waiting for services to start successfully...")
	for _, name := range services {
		if slices.Contains(xivoServices, name) && s.disabled() {
			fmt.Fprintf(s.Stdout, "\t%s is disabled\n", name)
			continue
		}
		if s.running(ctx, name) == 0 {
			continue
		}
		fmt.Fprintf(s.Stdout, "\tstarting %s ...", name)
		if _, code := s.exec(ctx, "systemctl", "start", name); code != 0 {
			fmt.Fprintln(s.Stdout, " NOK")
			s.openSIP(ctx)
			return 1
		}
		fmt.Fprintln(s.Stdout, " OK")
	}
	if monit {
		s.exec(ctx, "systemctl", "start", "monit")
	}
	s.openSIP(ctx)
	fmt.Fprintln(s.Stdout, "XiVO fully booted")
	return 0
}

func (s *Service) stop(ctx context.Context, services []string, monit bool) {
	s.closeSIP(ctx)
	fmt.Fprintln(s.Stdout, "Waiting for services to stop successfully...")
	if monit {
		s.exec(ctx, "systemctl", "stop", "monit")
	}
	for _, name := range slices.Backward(services) {
		s.exec(ctx, "systemctl", "stop", name)
	}
}

func (s *Service) closeSIP(ctx context.Context) {
	fmt.Fprintln(s.Stdout, "Closing port 5060.")
	if !s.sipClosed(ctx) {
		s.exec(ctx, "iptables", "-I", "INPUT", "1", "-p", "udp", "--dport", "5060", "-j", "DROP")
	}
}

func (s *Service) openSIP(ctx context.Context) {
	fmt.Fprintln(s.Stdout, "Opening port 5060.")
	if s.sipClosed(ctx) {
		s.exec(ctx, "iptables", "-D", "INPUT", "-p", "udp", "--dport", "5060", "-j", "DROP")
	}
}

// sipClosed looks as the original does: for any line of any chain that starts
// with DROP and has 5060 in it.
func (s *Service) sipClosed(ctx context.Context) bool {
	out, _ := s.exec(ctx, "iptables", "-n", "--list")
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "DROP") && strings.Contains(line, "5060") {
			return true
		}
	}
	return false
}

func (s *Service) disabled() bool {
	_, err := os.Stat(s.Marker)
	return err == nil
}

// setEnabled changes the marker, and the line startup= where the file has one:
// it also holds XIVO_UUID. 15.20 knows nothing of that, and writes it anew.
func (s *Service) setEnabled(ctx context.Context, on bool) int {
	err := os.Remove(s.Marker)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	startup, monit := "startup=yes", "enable"
	if !on {
		startup, monit = "startup=no", "disable"
		if err = os.MkdirAll(filepath.Dir(s.Marker), 0o755); err == nil {
			err = os.WriteFile(s.Marker, nil, 0o644)
		}
	}
	if !s.Release.keepsDefaults() {
		err = errors.Join(err, os.WriteFile(s.Default, []byte(startup+"\n"), 0o644))
	} else if text, readErr := os.ReadFile(s.Default); readErr == nil {
		lines := bytes.Split(text, []byte("\n"))
		for i, line := range lines {
			if bytes.HasPrefix(line, []byte("startup=")) {
				lines[i] = []byte(startup)
			}
		}
		err = errors.Join(err, os.WriteFile(s.Default, bytes.Join(lines, []byte("\n")), 0o644))
	}
	s.exec(ctx, "systemctl", monit, "monit")
	if err != nil {
		fmt.Fprintln(s.Stdout, err)
		return 1
	}
	return 0
}

func (s *Service) exec(ctx context.Context, name string, args ...string) (string, int) {
	if s.Exec != nil {
		return s.Exec(ctx, name, args...)
	}
	out, err := exec.CommandContext(ctx, name, args...).Output()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return string(out), 0
	case errors.As(err, &exit):
		return string(out), exit.ExitCode()
	default: // as a shell says for a command that is not there
		fmt.Fprintln(s.Stdout, err)
		return "", 127
	}
}
