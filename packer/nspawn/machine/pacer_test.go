package machine

import (
	"testing"
	"time"
)

func TestPowerOffIsAskedForAtOnceAndThenLessAndLess(t *testing.T) {
	var ask pacer
	start := time.Now()
	var asked []time.Duration
	for at := time.Duration(0); at < 10*time.Minute; at += poll {
		if ask.due(start.Add(at)) {
			asked = append(asked, at)
		}
	}
	if len(asked) < 3 || len(asked) > 15 || asked[0] != 0 || asked[1] != poll {
		t.Errorf("in ten minutes it was asked %d times, the first at %v; want at once, again after %s, and some dozen times in all", len(asked), asked[:min(3, len(asked))], poll)
	}
}
