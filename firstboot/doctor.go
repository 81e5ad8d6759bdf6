package firstboot

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
)

// Level is how bad a finding is.
type Level string

const (
	OK   Level = "ok"
	Warn Level = "warn" // works, or mends itself
	Fail Level = "fail" // somebody has to do something
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

// check is one thing that is looked at. It changes nothing; "" is good.
type check struct {
	name string
	look func(ctx context.Context, n *Node) (Level, string)
}

var checks = []check{
	{"version", func(_ context.Context, n *Node) (Level, string) {
		if !n.Platform.Traits.Joinable {
			return Warn, fmt.Sprintf("XiVO %s cannot be joined to others", n.Platform.Version)
		}
		return OK, "XiVO " + n.Platform.Version.String()
	}},
	{"document", func(_ context.Context, n *Node) (Level, string) {
		switch {
		case n.DocumentErr != nil && n.Config != nil:
			return Fail, "the last good one is in force, since: " + n.DocumentErr.Error()
		case n.Config == nil:
			return Fail, fmt.Sprintf("there is none: %v; write %s", cmp.Or(n.DocumentErr, n.noDocument), documentHint)
		}
		return OK, fmt.Sprintf("%d peers, topology %s", len(n.Config.Peers), n.Config.Topology)
	}},
	{"phase", func(ctx context.Context, n *Node) (Level, string) {
		if why := n.Waits(ctx); why != "" {
			return Fail, why
		}
		return OK, "became and settled"
	}},
	{"clock", func(ctx context.Context, n *Node) (Level, string) {
		s, err := n.ReadStatus(ctx)
		switch {
		case err != nil:
			return Fail, err.Error()
		case time.Until(s.At) > 0:
			return Fail, "the clock went back behind the last pass of converge: set it, `timedatectl set-ntp true` keeps it"
		case time.Since(s.At) > 2*atLeast:
			return Fail, fmt.Sprintf("the last pass of converge was %s ago: see `systemctl status xivo-mesh`", time.Since(s.At).Round(time.Second))
		}
		return OK, fmt.Sprintf("the last pass was %s ago", time.Since(s.At).Round(time.Second))
	}},
	{"host name", func(ctx context.Context, n *Node) (Level, string) {
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
	}},
	{"state", func(ctx context.Context, n *Node) (Level, string) {
		s, err := n.ReadStatus(ctx)
		if err != nil {
			return Fail, err.Error()
		}
		says := strings.TrimSpace(string(s.State) + " " + s.Why)
		switch s.State {
		case Alone, Joined:
			return OK, says
		case Degraded:
			return Warn, says
		}
		return Fail, says
	}},
	{"members", func(ctx context.Context, n *Node) (Level, string) {
		s, err := n.ReadStatus(ctx)
		if err != nil {
			return Fail, err.Error()
		}
		var silent []string
		for _, p := range s.Peers {
			switch {
			case p.Suspended:
				silent = append(silent, p.String()+" is suspended: its contacts are taken out of the searches until it answers; if it is dead, `xivo-firstboot forget "+p.UUID.String()+"`")
			case !p.Answered:
				silent = append(silent, p.String()+" does not answer: is it up, and are ports 5672, 8300 and 8302 open both ways?")
			}
		}
		if silent != nil {
			return Fail, strings.Join(silent, "; ")
		}
		if noted := slices.Clone(s.NotManaged); len(noted) > 0 || len(s.Refused) > 0 {
			for _, r := range s.Refused {
				noted = append(noted, r.Member.String()+" is refused: it "+r.Reason)
			}
			return Warn, strings.Join(noted, "; ")
		}
		return OK, fmt.Sprintf("%d, and all answer", len(s.Peers))
	}},
}

// links are the broker's.
var links = check{"links", func(ctx context.Context, n *Node) (Level, string) {
	b, err := n.Broker(ctx)
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
}}

// documentHint is where a person puts a document on a running machine.
const documentHint = "/etc/xivo-firstboot/config.yml"

// identitySteps are the places of the identity. They are set once, and looked at
// ever after.
var identitySteps = []string{"hostname", "uuid-database", "uuid-files", "uuid-manager", "consul-token"}

// Examine looks at everything that makes this node one of its mesh, and changes
// nothing. Each finding is handed to told as soon as it is there.
func (n *Node) Examine(ctx context.Context, told func(Finding)) {
	for _, c := range checks {
		n.examine(ctx, c, told)
	}
	if n.Config == nil || n.Journal == nil {
		return // the rest is about a node
	}
	n.examine(ctx, links, told)
	for _, s := range BecomePhase.Steps {
		if slices.Contains(identitySteps, s.Name) {
			n.examine(ctx, check{s.Name, differs(s, Fail, "it was changed after this node became: put it back")}, told)
		}
	}
	if _, err := n.begin(ctx); err != nil {
		told(Finding{Fail, "members", err.Error()})
		return
	}
	for _, s := range ConvergePhase.Steps {
		n.examine(ctx, check{s.Name, differs(s, Warn, "the watch puts that right; `xivo-firstboot converge` does at once")}, told)
	}
	for _, notice := range n.notices {
		told(Finding{Warn, "notice", notice})
	}
}

func (n *Node) examine(ctx context.Context, c check, told func(Finding)) {
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	level, says := c.look(ctx, n)
	told(Finding{level, c.name, says})
}

// differs looks at a step as a plan does.
func differs(s Step, level Level, do string) func(context.Context, *Node) (Level, string) {
	return func(ctx context.Context, n *Node) (Level, string) {
		r, err := s.Open(ctx, n)
		var diff []string
		if err == nil {
			diff, err = r.Diff(ctx)
		}
		switch {
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
