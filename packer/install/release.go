package install

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// product is who publishes a version, and how.
type product struct {
	name   string
	mirror string // that its install script names
	script string // path on the mirror
	prefix string // of a version in the names of the archive
}

var (
	productXiVO = product{"XiVO", "http://mirror.xivo.solutions", "/xivo_install.sh", "xivo-"}
	productWazo = product{"Wazo", "http://mirror.wazo.community", "/fai/xivo-migration/wazo_install.sh", "wazo-"}
)

// debian is a release of Debian by its number.
type debian int

var codenames = map[debian]string{
	7: "wheezy", 8: "jessie", 9: "stretch", 10: "buster", 11: "bullseye", 12: "bookworm",
}

func (d debian) String() string { return fmt.Sprintf("Debian %d (%s)", int(d), codenames[d]) }

// archived tells whether Debian's mirrors have dropped the release, so that
// archive.debian.org alone has it.
func (d debian) archived() bool { return d <= 10 }

// release is what a version needs.
type release struct {
	product product
	debian  debian
}

// releases says from which version on what is needed; the install scripts
// check the same. Wazo took XiVO's numbers over, XiVO went on with whole years.
// A longer version is later than the one that it begins with: the scripts
// install 2018.13.00, which is not 2018.13, on Debian 9.
var releases = []struct {
	from []int
	release
}{
	{[]int{14, 18}, release{productXiVO, 7}}, // xivo-dist, which the script uses, came with it
	{[]int{15, 19, 0}, release{productXiVO, 8}},
	{[]int{16, 16}, release{productWazo, 8}},
	{[]int{18, 1}, release{productWazo, 9}},
	{[]int{19, 10}, release{}}, // Ansible, from somewhere else
	{[]int{2017}, release{productXiVO, 8}},
	{[]int{2018, 13, 0}, release{productXiVO, 9}},
	{[]int{2020, 9, 0}, release{productXiVO, 10}},
	{[]int{2022, 4, 0}, release{productXiVO, 11}},
	{[]int{2024, 5}, release{productXiVO, 12}},
}

// versionText is a version as the archive writes it: years of two or four
// digits, months of two.
var versionText = regexp.MustCompile(`^([0-9]{2}|[0-9]{4})\.[0-9]{2}(\.[0-9]{1,4})*$`)

// releaseOf returns what a version needs. The error says why there is none.
func releaseOf(version string) (release, error) {
	if rest, ok := strings.CutPrefix(version, "xivo-"); ok {
		return release{}, fmt.Errorf("%q: leave out the prefix: %q", version, rest)
	}
	if !versionText.MatchString(version) {
		return release{}, fmt.Errorf("%q is not the version of a XiVO, such as 15.19, 16.03 or 2018.16.00", version)
	}
	var parts []int
	for field := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return release{}, fmt.Errorf("%q: %w", version, err)
		}
		parts = append(parts, n)
	}

	var found release
	for _, r := range releases {
		if slices.Compare(parts, r.from) >= 0 {
			found = r.release
		}
	}
	if found.debian == 0 {
		return release{}, fmt.Errorf("%s cannot be installed by script: XiVO can from 14.18 on, Wazo from 16.16 to 19.09", version)
	}
	return found, nil
}
