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
func ForeignAddresses(ctx context.Context, conn *pgx.Conn, p *platform.Platform, local func(netip.Addr) bool) ([]string, error) {
	var out []string
	foreign := func(text, where, so string) {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || !a.Is4() || a.IsLoopback() || a.IsUnspecified() || local(a) {
			return
		}
		out = append(out, fmt.Sprintf("%s holds %s, which is no address of this machine: %s", where, a, so))
	}

	interfaces, err := addressRows(ctx, conn, "netiface", "SELECT ifname, coalesce(address, '') FROM netiface WHERE disable = 0 ORDER BY id")
	if err != nil {
		return nil, err
	}
	for _, r := range interfaces {
		foreign(r.Address, "XiVO's network configuration of "+r.Where, "the next time that XiVO applies it, this machine takes it; correct it in the web interface")
	}
	provisioning, err := addressRows(ctx, conn, "provisioning", "SELECT '', net4_ip FROM provisioning ORDER BY id")
	if err != nil {
		return nil, err
	}
	const phones = "phones are sent there; correct it in the web interface"
	for _, r := range provisioning {
		foreign(r.Address, "XiVO's provisioning configuration", phones)
	}

	address, err := provdAddress(p)
	if err != nil {
		return nil, err
	}
	foreign(address, "xivo-provd's "+provdBase, phones)
	return out, nil
}

// provdAddress is the address that xivo-provd tells phones; "" where there is no
// such file. The folder is xivo-provd's user's own.
func provdAddress(p *platform.Platform) (string, error) {
	raw, err := files.ReadFile(p.Path(provdBase))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
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
		return "", fmt.Errorf("identity: read %s: %w", provdBase, err)
	}
	return base.RawConfig.IP, nil
}

// addressRow is an address of XiVO's configuration, and what it is of.
type addressRow struct{ Where, Address string }

// addressRows reads those of a table; none where this version does not have it.
func addressRows(ctx context.Context, conn *pgx.Conn, table, sql string) ([]addressRow, error) {
	columns, err := postgres.Columns(ctx, conn, table)
	if err == nil && columns != nil {
		var found []addressRow
		if found, err = postgres.Rows(ctx, conn, pgx.RowToStructByPos[addressRow], sql); err == nil {
			return found, nil
		}
	}
	if err != nil {
		err = fmt.Errorf("identity: read %s: %w", table, err)
	}
	return nil, err
}
