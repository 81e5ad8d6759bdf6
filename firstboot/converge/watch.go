package converge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

const (
	// lookEvery is how often the watch looks at the local agent's member list.
	lookEvery = 3 * time.Second
	// passEvery is how often a pass is made although nothing changed.
	passEvery = time.Minute
	// eager is for how long after a change an unfinished mesh gets a pass at
	// every look; after that, it gets one now and then.
	eager      = 2 * time.Minute
	retryEvery = 15 * time.Second
)

// Watch converges until ctx ends: at once, when the mesh, the document or the
// version changed, and now and then. Each result is handed to told. While a
// person makes a pass by hand, the watch makes none.
func Watch(ctx context.Context, n *node.Node, told func(Result)) error {
	var memory Memory
	defer memory.Close()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()

	var lastPass, lastChange time.Time
	var lastSigns []string
	var last Result
	for {
		if n.Reload() {
			n.Log.Info("there is a new document")
		}
		now := signs(ctx, n)
		changed := !slices.Equal(now, lastSigns)
		if changed {
			lastChange = time.Now()
		}
		wait := last.nextPass(time.Since(lastChange))
		if (changed || time.Since(lastPass) >= wait) && mayWork(n) {
			lastSigns, lastPass = now, time.Now()
			result, err := Converge(ctx, n, &memory)
			n.Unlock()
			if err != nil && ctx.Err() == nil {
				n.Log.Warn("converge: the next pass goes on", "error", err)
			}
			if len(result.Report.Changed()) > 0 {
				lastChange = time.Now()
			}
			last = result
			told(result)
			// However long the pass took, a person gets a turn before the next.
			ticker.Reset(lookEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// nextPass is how long the next pass may wait where no sign of a change is seen.
func (r Result) nextPass(sinceChange time.Duration) time.Duration {
	settled := r.Status.State == Joined || r.Status.State == Alone
	switch {
	case settled && !r.Unfinished:
		return passEvery
	case sinceChange < eager:
		return 0
	}
	return retryEvery
}

// mayWork takes the lock, unless somebody else has it, or what this machine is
// was forgotten under the watch: then the next boot decides.
func mayWork(n *node.Node) bool {
	err := n.Lock()
	if err == nil && n.Journal == nil {
		n.Unlock()
		return false
	}
	if err != nil && !errors.Is(err, node.ErrBusy) {
		n.Log.Warn("converge: the next pass tries again", "error", err)
	}
	return err == nil
}

// signs are what a change shows in: the document and version in force, what the service
// of the mesh's network tells, and the local agent's member list.
func signs(ctx context.Context, n *node.Node) []string {
	out := []string{"version " + n.Platform.Version.String(), fmt.Sprint("document ", fingerprint(string(cloudinit.UserData(n.Config()))), n.Document.Err)}
	ctx, cancel := context.WithTimeout(ctx, lookEvery)
	defer cancel()
	out = append(out, overlaySigns(ctx, n)...)
	n.Servers.AskAgain()
	c, err := n.Servers.Consul(ctx)
	if err != nil {
		return out
	}
	members, err := c.WANMembers(ctx)
	if err != nil {
		n.Servers.Redial()
		return out
	}
	for _, m := range members {
		alive := "unreachable"
		if m.Alive {
			alive = "alive"
		}
		out = append(out, m.Name+" "+m.Address+" "+alive)
	}
	slices.Sort(out)
	return out
}
