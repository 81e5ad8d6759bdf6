package firstboot

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

const (
	// every is how often the watch looks at the local agent's member list.
	every = 3 * time.Second
	// atLeast is how often a pass is made although nothing changed.
	atLeast = time.Minute
	// eager is for how long after a change an unfinished mesh gets a pass at
	// every look; after that, it gets one now and then.
	eager    = 2 * time.Minute
	patience = 15 * time.Second
	// stepDeadline bounds one step of a pass, whatever it waits for.
	stepDeadline = 45 * time.Second
)

// slow are the steps of a pass that have longer: half done, they are worse than
// late.
var slow = map[string]time.Duration{"rabbitmq-federation": rabbitmq.EnableTime}

func (s Step) deadline() time.Duration { return max(stepDeadline, slow[s.Name]) }

// Watch converges until ctx ends: at once, when the mesh, the document or the
// version changed, and now and then. Each status is handed to told. While a
// person makes a pass by hand, the watch makes none.
func (n *Node) Watch(ctx context.Context, told func(Status, []Change)) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()

	var lastPass, lastChange time.Time
	var last []string
	var state State
	for {
		n.reload()
		view := n.view(ctx)
		changed := !slices.Equal(view, last)
		if changed {
			lastChange = time.Now()
		}
		wait := atLeast
		if state != Joined && state != Alone || len(n.unmanaged) > 0 || n.pending {
			wait = patience
			if time.Since(lastChange) < eager {
				wait = 0
			}
		}
		if (changed || time.Since(lastPass) >= wait) && n.mayWork() {
			last, lastPass = view, time.Now()
			status, changes, err := n.Converge(ctx)
			n.Unlock()
			if err != nil && ctx.Err() == nil {
				n.Log.Warn("converge: the next pass goes on", "error", err)
			}
			if len(changes) > 0 {
				lastChange = time.Now()
			}
			state = status.State
			told(status, changes)
			// However long the pass took, a person gets a turn before the next.
			ticker.Reset(every)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// mayWork takes the lock, unless somebody else has it, or what this machine is
// was forgotten under the watch: then the next boot decides.
func (n *Node) mayWork() bool {
	err := n.Lock()
	if err == nil && n.Journal == nil {
		n.Unlock()
		return false
	}
	if err != nil && !errors.Is(err, ErrBusy) {
		n.Log.Warn("converge: the next pass tries again", "error", err)
	}
	return err == nil
}

// view is what a change shows in: the document and version in force, the local
// agent's member list, and what others left in its KV.
func (n *Node) view(ctx context.Context) []string {
	out := []string{"version " + n.Platform.Version.String(), fmt.Sprint("document ", fingerprint(string(cloudinit.UserData(n.Config))), n.DocumentErr)}
	ctx, cancel := context.WithTimeout(ctx, every)
	defer cancel()
	n.consulErr = nil
	c, err := n.Consul(ctx)
	if err != nil {
		return out
	}
	members, err := c.WANMembers(ctx)
	if err != nil {
		n.consul = nil
		return out
	}
	for _, m := range members {
		alive := "gone"
		if m.Alive {
			alive = "alive"
		}
		out = append(out, m.Name+" "+m.Address+" "+alive)
	}
	notes, err := c.Notes(ctx, "", notesPrefix)
	if err != nil {
		return out
	}
	for key, text := range notes {
		out = append(out, key+" "+text)
	}
	slices.Sort(out)
	return out
}
