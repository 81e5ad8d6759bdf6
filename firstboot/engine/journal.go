package engine

import "time"

// State is how far a step, or a phase, came.
type State string

// The two states that are stamped. What has no stamp was never begun.
const (
	Running State = "running"
	Done    State = "done"
)

// Stamp says how far a step came, and since when.
type Stamp struct {
	State State     `json:"state"`
	At    time.Time `json:"at"`
}

// Journal is what survives a power cut. A stamp is on the disk before Stamp
// returns.
type Journal interface {
	// Done says whether a step or phase was stamped done.
	Done(id string) bool
	// Begun says whether it was ever stamped.
	Begun(id string) bool
	Stamp(id string, s State) error
}

// Redo makes a step run again that was done; that it was begun stays known.
func Redo(j Journal, id string) error {
	if !j.Done(id) {
		return nil
	}
	return j.Stamp(id, Running)
}
