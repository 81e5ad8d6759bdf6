package node

import "time"

// Trusted is as late as it can be now: the latest of the clock, of when the image was
// sealed, and of the times that this machine wrote. A clock that was reset must not
// make all that others say come from the future.
func (n *Node) Trusted(clock time.Time, wrote ...time.Time) time.Time {
	latest := clock
	if m := n.Seal.Manifest; m != nil {
		wrote = append(wrote, m.At)
	}
	if n.Journal != nil {
		for _, stamp := range n.Journal.Steps {
			wrote = append(wrote, stamp.At)
		}
	}
	for _, t := range wrote {
		if t.After(latest) {
			latest = t
		}
	}
	return latest
}
