package platform

import (
	"os"
	"strings"

	"github.com/google/uuid"
)

// ProductUUID returns the hardware's UUID as SMBIOS tells it, in lower case,
// or "" where it is unknown: no such file, or a value that is no UUID or is
// one that vendors leave in every machine.
func (p *Platform) ProductUUID() string {
	raw, err := os.ReadFile(p.Path("/sys/class/dmi/id/product_uuid"))
	if err != nil {
		return ""
	}
	u, err := uuid.Parse(strings.TrimSpace(string(raw)))
	if err != nil || u == uuid.Nil || u == uuid.Max {
		return ""
	}
	return u.String()
}

// SameProduct compares two product UUIDs. Firmware and hypervisors disagree
// about the byte order of the first three fields; both orders are one machine.
func SameProduct(a, b string) bool {
	ua, errA := uuid.Parse(a)
	ub, errB := uuid.Parse(b)
	if errA != nil || errB != nil {
		return a == b
	}
	return ua == ub || swapped(ua) == ub
}

func swapped(u uuid.UUID) uuid.UUID {
	u[0], u[1], u[2], u[3] = u[3], u[2], u[1], u[0]
	u[4], u[5] = u[5], u[4]
	u[6], u[7] = u[7], u[6]
	return u
}
