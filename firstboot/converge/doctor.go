package converge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// Level is how bad a finding is.
type Level string

const (
	OK   Level = "ok"
	Warn Level = "warn" // works, or mends itself
	Fail Level = "fail" // somebody has to do something
	// Skipped: it does not concern this node, and was not looked at.
	Skipped Level = "skip"
)

// Finding is one line of an examination.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`
	// Says is what was found, and what to do about it.
	Says string `json:"says"`
}

// checkWait bounds one check.
const checkWait = 15 * time.Second

// check is one thing that is looked at. It changes nothing.
type check struct {
	name string
	look func(ctx context.Context, n *node.Node) (Level, string)
}

// checks are those of any server, before it is looked at as a node.
var checks = []check{
	{"version", checkVersion},
	{"document", checkDocument},
	{"phase", checkPhase},
	{"clock", checkClock},
	{"host name", checkHostName},
	{"state", checkState},
	{"overlay", checkOverlay},
	{"peers", checkMembers},
}

func checkVersion(_ context.Context, n *node.Node) (Level, string) {
	if !n.Platform.Traits.Joinable {
		return Warn, fmt.Sprintf("XiVO %s cannot be joined to others", n.Platform.Version)
	}
	return OK, "XiVO " + n.Platform.Version.String()
}

func checkDocument(_ context.Context, n *node.Node) (Level, string) {
	switch d := n.Document; {
	case d.Err != nil && d.Config != nil:
		return Fail, "the last good one is in force, since: " + d.Err.Error()
	case d.Config == nil:
		return Fail, fmt.Sprintf("there is none: %v; write %s", cmp.Or(d.Err, d.Missing), node.DocumentHint)
	default:
		return OK, fmt.Sprintf("%d peers, topology %s", len(d.Config.Peers), d.Config.Topology)
	}
}

func checkPhase(ctx context.Context, n *node.Node) (Level, string) {
	if why := Waits(ctx, n); why != "" {
		return Fail, why
	}
	return OK, "became and settled"
}

func checkClock(ctx context.Context, n *node.Node) (Level, string) {
	s := ReadStatus(ctx, n)
	switch {
	case s.At.IsZero():
		return Skipped, "skipped: no pass has been made yet"
	case time.Until(s.At) > 0:
		return Fail, "the clock went back behind the last pass of converge: set it, `timedatectl set-ntp true` keeps it"
	case time.Since(s.At) > 2*passEvery:
		return Fail, fmt.Sprintf("the last pass of converge was %s ago: see `systemctl status xivo-mesh`", time.Since(s.At).Round(time.Second))
	}
	return OK, fmt.Sprintf("the last pass was %s ago", time.Since(s.At).Round(time.Second))
}

func checkHostName(ctx context.Context, n *node.Node) (Level, string) {
	host, err := os.Hostname()
	if err != nil {
		return Fail, err.Error()
	}
	if _, err := net.DefaultResolver.LookupHost(ctx, host); err != nil {
		return Fail, fmt.Sprintf("%s does not resolve here: add it to the line 127.0.1.1 of /etc/hosts (%v)", host, err)
	}
	if had := n.Identity().Hostname; host != had {
		return Warn, fmt.Sprintf("it is %s, and was %s when this node became: its peers know it by that", host, had)
	}
	return OK, host
}

func checkState(ctx context.Context, n *node.Node) (Level, string) {
	s := ReadStatus(ctx, n)
	says := strings.TrimSpace(string(s.State) + " " + s.Why)
	switch s.State {
	case Alone, Joined:
		return OK, says
	case Degraded:
		return Warn, says
	}
	return Fail, says
}

func checkMembers(ctx context.Context, n *node.Node) (Level, string) {
	s := ReadStatus(ctx, n)
	var silent []string
	for _, p := range s.Peers {
		switch {
		case p.Suspended:
			silent = append(silent, p.String()+" is suspended: its contacts are taken out of the searches until it answers; if it is dead, `xivo-firstboot forget "+p.UUID.String()+"`")
		case !p.Answered:
			silent = append(silent, p.String()+" does not answer: is it up, and do its Consul and RabbitMQ run?")
		}
	}
	if silent != nil {
		return Fail, strings.Join(silent, "; ")
	}
	if len(s.NotManaged) > 0 {
		return Warn, "in Consul's WAN, and no member of the mesh: " + strings.Join(s.NotManaged, ", ")
	}
	return OK, fmt.Sprintf("%d, and all answer", len(s.Peers))
}

// checkLinks looks at the broker's.
func checkLinks(ctx context.Context, n *node.Node) (Level, string) {
	b, err := n.Servers.Broker(ctx)
	if err != nil {
		return Fail, err.Error()
	}
	links, err := b.Links(ctx)
	if err != nil {
		return Fail, err.Error()
	}
	var down []string
	for name, l := range links {
		if l.State != "running" {
			down = append(down, name+" is "+l.State+" "+l.Error)
		}
	}
	if down != nil {
		slices.Sort(down)
		return Fail, "federation: " + strings.Join(down, "; ")
	}
	return OK, fmt.Sprintf("%d federation links run", len(links))
}

// Examine looks at everything that makes this node one of its mesh, and changes
// nothing. Kept are the places of the identity: they are set once, and looked at
// ever after. Each finding is handed to told as soon as it is there.
func Examine(ctx context.Context, n *node.Node, kept []engine.Step[*node.Node], told func(Finding)) {
	for _, c := range checks {
		examine(ctx, n, c, told)
	}
	if n.Config() == nil || n.Journal == nil {
		return // the rest is about a node
	}
	examine(ctx, n, check{"links", checkLinks}, told)
	for _, s := range kept {
		examine(ctx, n, check{s.Name, lookedAt(s, n, Fail, "it was changed after this node became: put it back")}, told)
	}

	var m Memory
	defer m.Close()
	p, err := newPass(ctx, n, &m, checkWait)
	if err != nil {
		told(Finding{Fail, "mesh", err.Error()})
		return
	}
	for _, s := range Phase.Steps {
		examine(ctx, n, check{s.Name, lookedAt(s, p, Warn, "the watch puts that right; `xivo-firstboot converge` does at once")}, told)
	}
	examine(ctx, n, check{"canary", p.checkCanary}, told)
	if p.View.SettingsErr != nil {
		told(Finding{Fail, "notices", p.View.SettingsErr.Error()})
	}
	for _, notice := range p.Decision.Notices {
		told(Finding{Warn, "notice", notice})
	}
}

func examine(ctx context.Context, n *node.Node, c check, told func(Finding)) {
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	level, says := c.look(ctx, n)
	told(Finding{level, c.name, says})
}

// lookedAt looks at a step as a plan does.
func lookedAt[S any](s engine.Step[S], subject S, level Level, do string) func(context.Context, *node.Node) (Level, string) {
	return func(ctx context.Context, _ *node.Node) (Level, string) {
		diff, skipped, err := s.Look(ctx, subject)
		switch {
		case skipped != "":
			return Skipped, "skipped: " + string(skipped)
		case errors.Is(err, context.DeadlineExceeded):
			return Fail, fmt.Sprintf("no answer in %s: %v", checkWait, err)
		case err != nil:
			return Fail, err.Error()
		case len(diff) > 0:
			return level, strings.Join(diff, "; ") + ": " + do
		}
		return OK, s.Text
	}
}

// checkCanary sends a message to every member, and waits for the answers.
func (p *Pass) checkCanary(ctx context.Context, _ *node.Node) (Level, string) {
	if skipped := engine.First(joinable, hasMembers)(p); skipped != "" {
		return Skipped, "skipped: " + string(skipped)
	}
	heard, err := p.Heard(ctx)
	if err != nil {
		return Fail, err.Error()
	}
	var silent []string
	for _, m := range p.Decision.Members {
		if _, ok := heard[m.UUID.String()]; !ok {
			silent = append(silent, m.String())
		}
	}
	if silent != nil {
		return Fail, "no message comes back from " + strings.Join(silent, ", ")
	}
	return OK, "a message goes to every member and back"
}
