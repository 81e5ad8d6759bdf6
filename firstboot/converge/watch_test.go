package converge

import (
	"testing"
	"time"
)

func TestHowLongTheNextPassMayWait(t *testing.T) {
	ended := func(s State) Result { return Result{Status: Status{State: s}} }
	unfinished := ended(Joined)
	unfinished.Unfinished = true
	aloneUnfinished := ended(Alone)
	aloneUnfinished.Unfinished = true
	for _, c := range []struct {
		name        string
		last        Result
		sinceChange time.Duration
		want        time.Duration
	}{
		{"joined", ended(Joined), 0, time.Minute},
		{"joined for long", ended(Joined), time.Hour, time.Minute},
		{"alone", ended(Alone), 0, time.Minute},
		{"no pass was made yet", Result{}, 0, 0},
		{"joining, right after a change", ended(Joining), 0, 0},
		{"joining, for nearly two minutes", ended(Joining), 2*time.Minute - 1, 0},
		{"joining, for two minutes", ended(Joining), 2 * time.Minute, 15 * time.Second},
		{"degraded, right after a change", ended(Degraded), time.Second, 0},
		{"degraded for long", ended(Degraded), time.Hour, 15 * time.Second},
		{"waiting for a person", ended(Waiting), time.Hour, 15 * time.Second},
		{"joined, and something of a peer was not there yet", unfinished, time.Second, 0},
		{"joined, and something of a peer is not there for long", unfinished, time.Hour, 15 * time.Second},
		{"alone, and somebody has not answered", aloneUnfinished, time.Second, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.last.nextPass(c.sinceChange); got != c.want {
				t.Errorf("the next pass may wait for %s, want %s", got, c.want)
			}
		})
	}
}
