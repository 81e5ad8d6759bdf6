package converge

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/mesh"
)

func TestAMemberIsSuspendedAfterTenSilentMinutes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		name            string
		seen, firstPass time.Time
		before, want    bool
	}{
		{"it answers", now, ago(time.Hour), false, false},
		{"silent for nine minutes", ago(9 * time.Minute), ago(time.Hour), false, false},
		{"silent for eleven", ago(11 * time.Minute), ago(time.Hour), false, true},
		{"we were away ourselves, and are back: it gets its time", ago(time.Hour), now, false, false},
		{"we are back for eleven minutes, and it is silent", ago(time.Hour), ago(11 * time.Minute), false, true},
		{"it was suspended before we went away, and is still silent", ago(time.Hour), now, true, true},
		{"it was suspended, and answers", now, now, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := suspended(mesh.Member{Seen: c.seen, Suspended: c.before}, now, c.firstPass); got != c.want {
				t.Errorf("suspended: %t, want %t", got, c.want)
			}
		})
	}
}

func TestAMemberIsNamedByItsUUIDOrHost(t *testing.T) {
	a, b, c := mesh.Member{UUID: uuid.New(), Host: "a"}, mesh.Member{UUID: uuid.New(), Host: "twice"}, mesh.Member{UUID: uuid.New(), Host: "twice"}
	for _, k := range []struct {
		name, which string
		among       []mesh.Member
		want        mesh.Member
		told        string // when it is none
	}{
		{"by its host name", "a", []mesh.Member{a, b, c}, a, ""},
		{"by its UUID", b.UUID.String(), []mesh.Member{a, b, c}, b, ""},
		{"by its UUID in capitals", strings.ToUpper(b.UUID.String()), []mesh.Member{a, b, c}, b, ""},
		{"a host name of two: the UUIDs are told", "twice", []mesh.Member{a, b, c}, mesh.Member{}, c.UUID.String()},
		{"nobody: the members are told", "nobody", []mesh.Member{a}, mesh.Member{}, a.UUID.String()},
		{"there are no members", "a", nil, mesh.Member{}, "knows no other"},
	} {
		t.Run(k.name, func(t *testing.T) {
			got, err := memberNamed(k.among, k.which)
			if got.UUID != k.want.UUID {
				t.Errorf("found %v, want %v", got, k.want)
			}
			if k.told != "" && (!errors.Is(err, ErrNoMember) || !strings.Contains(err.Error(), k.told)) || k.told == "" && err != nil {
				t.Errorf("it is told as: %v", err)
			}
		})
	}
}
