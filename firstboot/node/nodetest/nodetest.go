// Package nodetest makes servers for tests of the packages that work on a node.
package nodetest

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/overlay"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
)

// Where a server keeps its UUID, the one that it has, and a peer's.
const (
	ProfileFile = "/etc/profile.d/xivo_uuid.sh"
	ManagerFile = "/etc/systemd/system.conf"
	OldUUID     = "11111111-2222-4333-8444-555555555555"
	PeerUUID    = "607796fc-24e2-4e26-8009-cbb48a205512"
)

// Manager is an init system that remembers what it was asked, and runs nothing.
// What its embedded Init is asked for that it does not know itself panics.
type Manager struct {
	platform.Init
	Env       map[string]string
	Restarted []string
	// Down are services that do not run; all others do.
	Down map[string]bool
	// AllDown: none runs.
	AllDown bool
}

func (m *Manager) Environment(_ context.Context, key string) (string, error) { return m.Env[key], nil }
func (m *Manager) SetEnvironment(_ context.Context, key, value string) error {
	m.Env[key] = value
	return nil
}
func (m *Manager) Active(_ context.Context, service string) (bool, error) {
	return !m.AllDown && !m.Down[service], nil
}
func (m *Manager) Restart(_ context.Context, service string) error {
	m.Restarted = append(m.Restarted, service)
	return nil
}

// Bare is a server below an empty root, of which nothing is known but its paths.
// Nothing on it runs.
func Bare(t *testing.T) *node.Node {
	t.Helper()
	return node.New(&platform.Platform{Root: t.TempDir(), Init: &Manager{AllDown: true}}, slog.New(slog.DiscardHandler))
}

// Server is a server of a version, about to become and settle, with this database,
// which may be nil. It has the files from which that version's daemons start.
func Server(t *testing.T, version string, db *pgx.Conn) *node.Node {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		platform.VersionFile:    version + "\n",
		ProfileFile:             "export XIVO_UUID=" + OldUUID + "\n",
		ManagerFile:             "[Manager]\nDefaultEnvironment=\"XIVO_UUID=" + OldUUID + "\"\n",
		"/etc/default/xivo":     "startup=yes\nexport XIVO_UUID=" + OldUUID + "\n",
		platform.CertificateKey: "",
	} {
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/etc/xivo-ctid-ng/conf.d", platform.StateDir} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n, err := node.Open(root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n.Platform.Init = &Manager{Env: map[string]string{"XIVO_UUID": OldUUID}}
	n.Document.Config = &cloudinit.Config{
		Version: 1, Secret: "four tired bakers sang before dawn", Topology: cloudinit.TopologyMesh,
		Network: cloudinit.Network{Mode: cloudinit.NetworkOverlay, Range: netip.MustParsePrefix("10.0.0.0/29"), Port: 9484},
	}
	n.Journal = n.NewJournal(node.Identity{
		UUID: uuid.MustParse("99999999-2222-4333-8444-555555555555"), Hostname: "xivo-b", Name: "xivo-b-99999999",
	})
	Addressed(t, n, "10.0.0.2/29")
	n.Servers.OpenConsul = func(context.Context) (*consul.Client, error) { return nil, errors.New("this server has no Consul") }
	n.Servers.OpenBroker = func(context.Context) (*rabbitmq.Client, error) { return nil, errors.New("this server has no broker") }
	n.Servers.OpenDB = func(context.Context) (*pgx.Conn, error) {
		if db == nil {
			return nil, errors.New("this server has no database")
		}
		return db, nil
	}
	return n
}

// Addressed lets a node keep an address in a range of its mesh's own network.
func Addressed(t *testing.T, n *node.Node, address string) {
	t.Helper()
	p := netip.MustParsePrefix(address)
	dir := n.Platform.Path(node.MeshDir)
	a := overlay.Address{Range: p.Masked(), Address: p.Addr(), UUID: n.Identity().UUID}
	if err := errors.Join(os.MkdirAll(dir, 0o700), a.Save(dir)); err != nil {
		t.Fatal(err)
	}
}

// Connect opens a database for as long as the test runs.
func Connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := postgres.ConnectTo(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// Ask reads one value from a database.
func Ask[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) (answer T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return answer
}

// Put writes a file of the server.
func Put(t *testing.T, n *node.Node, path, content string) {
	t.Helper()
	file := n.Platform.Path(path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// Read reads one.
func Read(t *testing.T, n *node.Node, path string) string {
	t.Helper()
	raw, err := os.ReadFile(n.Platform.Path(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// Files is all that is below a root, to see that nothing was written.
func Files(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(name)
		found[name] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// Only is a phase with only some of its steps.
func Only[S any](t *testing.T, p engine.Phase[S], names ...string) engine.Phase[S] {
	t.Helper()
	var steps []engine.Step[S]
	for _, name := range names {
		s, ok := p.Step(name)
		if !ok {
			t.Fatalf("there is no step %s", p.ID(name))
		}
		steps = append(steps, s)
	}
	p.Steps = steps
	return p
}

// Done stamps phases and steps of the node's journal as done.
func Done(t *testing.T, n *node.Node, ids ...string) {
	t.Helper()
	for _, id := range ids {
		n.Journal.Steps[id] = engine.Stamp{State: engine.Done}
	}
}
