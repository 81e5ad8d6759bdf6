package standin

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// VersionFile is where a XiVO says which release it is.
const VersionFile = "/usr/share/xivo/XIVO-VERSION"

// Release is a release of XiVO, year and month first.
type Release []int

// ParseRelease reads a release as the version file has it: 16.03, 16.08.1.
func ParseRelease(text string) (Release, error) {
	var r Release
	for field := range strings.SplitSeq(strings.TrimSpace(text), ".") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%q is no release of XiVO", text)
		}
		r = append(r, n)
	}
	return r, nil
}

// ReadRelease reads a version file.
func ReadRelease(file string) (Release, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return ParseRelease(string(text))
}

func (r Release) since(year, month int) bool { return slices.Compare(r, Release{year, month}) >= 0 }

// What the daemons do differently, as far as a mesh notices.

// ttlCheck: xivo-ctid tells Consul itself that it lives, and knows the address
// "auto". Before, Consul asks check_url, and "auto" is an address like another.
func (r Release) ttlCheck() bool { return r.since(16, 1) }

// uuidInEnvironment: xivo-ctid takes its identity from XIVO_UUID. Before, from
// the database when it starts.
func (r Release) uuidInEnvironment() bool { return r.since(16, 2) }

// usersHaveUUIDs: xivo-confd's directory view has uuid and email.
func (r Release) usersHaveUUIDs() bool { return r.since(16, 2) }

// keepsDefaults: xivo-service edits /etc/default/xivo. Before, it writes it anew.
func (r Release) keepsDefaults() bool { return r.since(16, 3) }

// asksForHealthy: xivo-ctid takes only those that pass their check. Before, any.
func (r Release) asksForHealthy() bool { return r.since(16, 15) }

// fetchesByItself: xivo-ctid asks the one of another XiVO for first statuses.
// Later it has its own xivo-ctid-ng do so, which has no stand-in: what does not
// come by the bus stays unknown.
func (r Release) fetchesByItself() bool { return !r.since(17, 16) }

// asksForPasswords: xivo-confd lets 127.0.0.1 in on its HTTP port only. Before,
// on both.
func (r Release) asksForPasswords() bool { return r.since(16, 16) }
