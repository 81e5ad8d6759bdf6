package platform

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a XiVO or Wazo release, compared number by number: 15.9 < 15.19,
// 16.08.1 > 16.08. The zero value is no version.
type Version struct {
	text  string
	parts []int
}

// ParseVersion reads "16.03", "16.08.1" or "16.10.hotfix" (the hotfix ranks as
// its release). At least year and month are needed.
func ParseVersion(s string) (Version, error) {
	v := Version{text: s}
	for i, field := range strings.Split(s, ".") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 0 || len(field) > 4 {
			if i >= 2 && field == "hotfix" {
				break
			}
			return Version{}, fmt.Errorf("%q is not a XiVO version (expected for example 16.03)", s)
		}
		v.parts = append(v.parts, n)
	}
	if len(v.parts) < 2 {
		return Version{}, fmt.Errorf("%q is not a XiVO version (expected for example 16.03)", s)
	}
	return v, nil
}

// String returns the version as it was written.
func (v Version) String() string { return v.text }

// Compare returns -1, 0 or 1. A missing part counts as 0.
func (v Version) Compare(o Version) int {
	for i := range max(len(v.parts), len(o.parts)) {
		if c := cmp.Compare(v.part(i), o.part(i)); c != 0 {
			return c
		}
	}
	return 0
}

func (v Version) part(i int) int {
	if i < len(v.parts) {
		return v.parts[i]
	}
	return 0
}
