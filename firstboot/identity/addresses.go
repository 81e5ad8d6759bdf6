package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/files"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// provdBase is where xivo-provd keeps the address that it tells phones.
const provdBase = "/var/lib/xivo-provd/jsondb/configs/base"

// ForeignAddresses tells where XiVO holds, as its own, an IPv4 address that is
// none of this machine's: a copy of a server that had passed its wizard has its
// original's. Each line says where, and what phones or network do with it.
// Nothing is changed: phones may depend on it, so that is for a person.
func ForeignAddresses(ctx context.Context, conn *pgx.Conn, p *platform.Platform, ours func(netip.Addr) bool) ([]string, error) {
	var out []string
	foreign := func(text, where, so string) {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || !a.Is4() || a.IsLoopback() || a.IsUnspecified() || ours(a) {
			return
		}
		out = append(out, fmt.Sprintf("%s holds %s, which is no address of this machine: %s", where, a, so))
	}

	type row struct{ Where, Address string }
	read := func(table, sql string) ([]row, error) {
		there, err := postgres.Rows(ctx, conn, pgx.RowTo[bool], "SELECT pg_table_is_visible(oid) FROM pg_class WHERE relname = $1", table)
		if err == nil && len(there) > 0 {
			var found []row
			if found, err = postgres.Rows(ctx, conn, pgx.RowToStructByPos[row], sql); err == nil {
				return found, nil
			}
		}
		if err != nil {
			err = fmt.Errorf("identity: read %s: %w", table, err)
		}
		return nil, err
	}
	interfaces, err := read("netiface", "SELECT ifname, coalesce(address, '') FROM netiface WHERE disable = 0 ORDER BY id")
	if err != nil {
		return nil, err
	}
	for _, r := range interfaces {
		foreign(r.Address, "XiVO's network configuration of "+r.Where, "the next time that XiVO applies it, this machine takes it; correct it in the web interface")
	}
	provisioning, err := read("provisioning", "SELECT '', net4_ip FROM provisioning ORDER BY id")
	if err != nil {
		return nil, err
	}
	const phones = "phones are sent there; correct it in the web interface"
	for _, r := range provisioning {
		foreign(r.Address, "XiVO's provisioning configuration", phones)
	}

	raw, err := files.ReadFile(p.Path(provdBase)) // in a folder of xivo-provd's user
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	var base struct {
		RawConfig struct {
			IP string `json:"ip"`
		} `json:"raw_config"`
	}
	if err == nil {
		err = json.Unmarshal(raw, &base)
	}
	if err != nil {
		return nil, fmt.Errorf("identity: read %s: %w", provdBase, err)
	}
	foreign(base.RawConfig.IP, "xivo-provd's "+provdBase, phones)
	return out, nil
}
