package platform

import (
	"strings"

	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/limit"
)

// ProductUUID returns the hardware's UUID as SMBIOS tells it, in lower case,
// or "" where it is unknown: no such file, or a value that is no UUID or one
// of the two that are nobody's, all zeros and all ones.
func (p *Platform) ProductUUID() string {
	raw, err := limit.ReadFile(p.Path("/sys/class/dmi/id/product_uuid"), limit.File)
	if err != nil {
		return ""
	}
	u, err := uuid.Parse(strings.TrimSpace(string(raw)))
	if err != nil || u == uuid.Nil || u == uuid.Max {
		return ""
	}
	return u.String()
}

// BootID names this boot of the kernel; "" where the kernel does not tell.
func (p *Platform) BootID() string {
	raw, err := limit.ReadFile(p.Path("/proc/sys/kernel/random/boot_id"), limit.File)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
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
