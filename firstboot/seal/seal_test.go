package seal

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTheManifestKeepsWhatAnEarlierSealTookOut(t *testing.T) {
	first, second, third := time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	m := &Manifest{At: first, Operations: []Operation{{Name: "uuid", Removed: []string{"the UUID"}}, {Name: "logs", Removed: []string{"old"}}, {Name: "raft"}}}
	for _, at := range []time.Time{second, third} {
		next := &Manifest{At: at, Operations: []Operation{{Name: "uuid"}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}}
		next.Keep(m)
		want := []Operation{{Name: "uuid", Removed: []string{"the UUID"}, Earlier: &first}, {Name: "logs", Removed: []string{"new"}}, {Name: "raft"}}
		if d := cmp.Diff(want, next.Operations); d != "" {
			t.Errorf("-want +got:\n%s", d)
		}
		m = next
	}
}
