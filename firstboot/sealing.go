package firstboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/xivo-mesh/packer-plugin-xivo/cloudinit"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/consul"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/directory"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/identity"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/rabbitmq"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/seal"
)

// BinaryPath is where a baked image has this program.
const BinaryPath = cloudinit.BinaryPath

// SealOperation is a step of the seal. Its proof is the step's own second
// reading; its counterpart gives a clone, at its first boot, its own of what
// was taken out.
type SealOperation struct {
	Step
	Counterpart string
}

// byUs begins a counterpart that is a step of our first boot.
const byUs = "xivo-firstboot: "

// ours names the first-boot step that is a counterpart.
func ours(step string) string { return byUs + step }

// gone opens the absence of files as a step's resource.
func gone(patterns ...string) func(context.Context, *Node) (Resource, error) {
	return func(_ context.Context, n *Node) (Resource, error) { return seal.Gone(n.Platform, patterns...), nil }
}

// SealOperations is the seal, in order. The broker and Consul are still up for
// the first ones.
func SealOperations() []SealOperation {
	return []SealOperation{
		{Step{"watch", "the watch of a node is stopped", sealWatch}, "systemd starts it"},
		{Step{"kv-export", "Consul's KV is exported", sealExport}, ours("settle.kv-import")},
		{Step{"directory-rows", "directory sources and the account of a mesh are gone", sharing(sealDirectory)}, ours("converge.directories")},
		{Step{"rabbitmq-plugins", "RabbitMQ's management and federation are enabled in its file", brokerPlugins}, ours("become.rabbitmq-plugins")},
		{Step{"rabbitmq-management", "RabbitMQ's management listens on loopback only", brokerManagement}, ours("become.rabbitmq-management")},
		{Step{"rabbitmq-federation", "federation users, upstreams and policies are gone", sealBroker}, ours("converge.rabbitmq-account")},
		{Step{"rabbitmq-name", "the broker's cluster name is a placeholder", sealBrokerName}, ours("settle.rabbitmq-name")},
		{Step{"uuid-database", "the XiVO UUID in the database is a placeholder", sealUUIDInDatabase}, ours("become.uuid-database")},
		{Step{"service-keys", "the keys of XiVO's own service accounts are gone", sealServiceKeys}, ours("become.service-keys")},
		{Step{"services", "XiVO, Consul and RabbitMQ are stopped", sealServices}, "systemd starts them"},
		{Step{"uuid-files", "the XiVO UUID in files is a placeholder", sealUUIDInFiles}, ours("become.uuid-files")},
		{Step{"uuid-manager", "the XiVO UUID in the service manager is a placeholder", sealUUIDInManager}, ours("become.uuid-manager")},
		{Step{"consul-state", "Consul's raft, serf, keyrings, services, checks and node id are gone", consulEmptied}, ours("become.consul-state")},
		{Step{"consul-config", "Consul's mesh configuration is gone", gone(platform.ConsulConfigDir + "/interconnection.json")}, ours("become.consul-config")},
		{Step{"consul-token", "Consul's master token is a placeholder, in every file that holds it", sealConsulToken}, ours("become.consul-token")},
		{Step{"ctid-config", "xivo-ctid's mesh configuration is gone", gone(ctid.ConfigFiles...)}, ours("become.ctid-config")},
		{Step{"erlang-cookie", "the Erlang cookie is gone", gone(platform.RabbitDataDir + "/.erlang.cookie")}, "RabbitMQ makes one when it starts"},
		{Step{"certificate", "the TLS key and certificate are gone", gone(platform.CertificateFile, platform.CertificateKey)}, ours("become.certificate")},
		{Step{"machine-id", "the machine id is empty", sealMachineID}, "systemd makes one at boot"},
		{Step{"dhcp-leases", "DHCP leases are gone", gone("/var/lib/dhcp/*.lease*", "/var/lib/NetworkManager/*.lease")}, "the DHCP client asks anew"},
		{Step{"udev-net-rules", "interface names are not tied to hardware addresses", gone("/etc/udev/rules.d/70-persistent-net.rules")}, "udev writes it where it uses it"},
		{Step{"random-seed", "the random seed is gone", sealRandomSeed}, "systemd saves one at shutdown"},
		{Step{"shell-history", "shell histories are gone", gone("/root/.*_history", "/home/*/.*_history", "/var/lib/postgresql/.*_history")}, "none is needed"},
		{Step{"apt-cache", "the apt cache is gone", gone("/var/cache/apt/archives/*.deb", "/var/cache/apt/*.bin", "/var/lib/apt/lists/*_*")}, "apt-get update"},
		{Step{"logs", "logs are empty", sealLogs}, "the daemons write on"},
		{Step{"cloud-init", "cloud-init's state is gone", gone("/var/lib/cloud/*", "/var/log/cloud-init*.log", "/etc/network/interfaces.d/50-cloud-init*")}, "cloud-init runs as on a new machine"},
		{Step{"our-state", "journal, document and state of a node are gone", sealState}, ours("converge.document")},
		{Step{"units", "xivo-firstboot and its units are installed", installed}, "they run at the first boot"},
	}
}

// LastOperations come after the manifest was brought home: the connection that
// brings it needs what they take away.
func LastOperations() []SealOperation {
	return []SealOperation{
		{Step{"build-ssh-key", "authorized SSH keys are gone", gone("/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*")}, "cloud-init installs those of the user data"},
		{Step{"ssh-host-keys", "SSH host keys are gone", gone("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub")}, ours("become.ssh-host-keys")},
	}
}

// bootWait is how long a machine that Packer has just reached may go on booting.
const bootWait = 5 * time.Minute

// SealOptions are a person's choices.
type SealOptions struct {
	AllowConfigured bool
	// Enable names the only operations to do, all when it is empty; Disable names
	// operations to leave out of those.
	Enable, Disable []string
	// Version is this program's.
	Version string
}

// whatClonesNeed are the operations without which no clone becomes: sealed is
// what the proof of the one makes an image, and the other brings our first boot.
var whatClonesNeed = []string{"uuid-database", "units"}

// check refuses names of no operation, and a choice with which clones would lack
// what is taken out.
func (o SealOptions) check() error {
	known := append(SealOperations(), LastOperations()...)
	for _, name := range slices.Concat(o.Enable, o.Disable) {
		if !slices.ContainsFunc(known, func(op SealOperation) bool { return op.Name == name }) {
			return fmt.Errorf("seal: there is no operation %q: see `xivo-firstboot seal --list`", name)
		}
	}
	if o.disabled("kv-export") && !o.disabled("consul-state") {
		return errors.New("seal: without kv-export, what consul-state takes out would be lost: do both, or leave out both")
	}
	for _, op := range known {
		if o.disabled(op.Name) || !strings.HasPrefix(op.Counterpart, byUs) {
			continue
		}
		for _, needed := range whatClonesNeed {
			if o.disabled(needed) {
				return fmt.Errorf("seal: without %s, no clone would get its own of what %s takes out: do both, or leave out both", needed, op.Name)
			}
		}
	}
	return nil
}

func (o SealOptions) disabled(operation string) bool {
	return len(o.Enable) > 0 && !slices.Contains(o.Enable, operation) || slices.Contains(o.Disable, operation)
}

// Seal takes every identity out of this machine, proves it, and writes the
// manifest. Sealing again goes through the same operations; the manifest keeps
// what an earlier seal took out.
func (n *Node) Seal(ctx context.Context, o SealOptions) (*seal.Manifest, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	// What is not proved again would no longer count, and no clone would become.
	if i := slices.IndexFunc(whatClonesNeed, o.disabled); i >= 0 && n.sealed() {
		return nil, fmt.Errorf("seal: this machine was sealed before, so %s cannot be left out", whatClonesNeed[i])
	}
	// What the boot has still to start would write where the seal was already.
	booted, cancel := context.WithTimeout(ctx, bootWait)
	defer cancel()
	if err := n.Platform.WaitBooted(booted); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := n.checkSchema(ctx); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if !n.Platform.HasSystemd() {
		return nil, errors.New("seal: without systemd a clone of this machine would never become a node: bake from Debian 8 (XiVO 15.20) or later; a running XiVO 15.19 becomes a node with `identity: keep` and `xivo-firstboot run`")
	}
	passed, err := n.wizardPassed(ctx)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if passed && !o.AllowConfigured {
		return nil, errors.New("seal: this XiVO has passed its wizard, so its IP is in netiface, provd and DHCP, and a clone would carry it; seal before the wizard, or say --allow-configured")
	}
	m := &seal.Manifest{Format: 1, At: time.Now().UTC(), Firstboot: o.Version, XiVO: n.Platform.Version.String(), Files: map[string]string{}}
	if m.Operations, err = n.runSeal(ctx, o, SealOperations()); err != nil {
		return nil, err
	}
	if n.manifest != nil {
		m.Keep(n.manifest)
	}
	if m.Proved("units") {
		for _, path := range installedFiles() {
			if m.Files[path], err = n.sum(path); err != nil {
				return nil, fmt.Errorf("seal: %w", err)
			}
		}
	}
	if m.KV, err = n.sum(exportFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return m, n.writeState(manifestFile, m)
}

// SealLast ends a seal, and says so in the manifest that stays in the image.
func (n *Node) SealLast(ctx context.Context, o SealOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	if n.manifest == nil {
		return errors.Join(errors.New("seal: there is no seal to end: run `xivo-firstboot seal` first"), n.manifestErr)
	}
	operations, err := n.runSeal(ctx, o, LastOperations())
	if err != nil {
		return err
	}
	n.manifest.Operations = slices.DeleteFunc(n.manifest.Operations, func(was seal.Operation) bool {
		return slices.ContainsFunc(operations, func(now seal.Operation) bool { return now.Name == was.Name })
	})
	n.manifest.Operations = append(n.manifest.Operations, operations...)
	return n.writeState(manifestFile, n.manifest)
}

// runSeal does the operations that a person wants, each with its proof.
func (n *Node) runSeal(ctx context.Context, o SealOptions, operations []SealOperation) ([]seal.Operation, error) {
	var all []seal.Operation
	for i, op := range operations {
		did := seal.Operation{Name: op.Name, Text: op.Text, Counterpart: op.Counterpart, Disabled: o.disabled(op.Name)}
		if !did.Disabled {
			var err error
			if did.Removed, err = n.runStep(ctx, "seal", op.Step, i+1, len(operations)); err != nil {
				return nil, fmt.Errorf("seal: %w", err)
			}
		}
		all = append(all, did)
	}
	return all, nil
}

// sealed says whether this machine is an image from which the XiVO UUID was
// taken out. A manifest that cannot be read counts: whoever acts on it is told.
func (n *Node) sealed() bool {
	return n.manifestErr != nil || n.manifest != nil && n.manifest.Proved("uuid-database")
}

// brokerSealed says whether the broker was left with no name and no upstream.
func (n *Node) brokerSealed() bool {
	return n.manifest != nil && !n.livedSince() && n.manifest.Proved("rabbitmq-federation") && n.manifest.Proved("rabbitmq-name")
}

// livedSince says whether this sealed machine was a node meanwhile, as one is on
// which somebody ran `cloud-init clean`: its export was used, and Consul has a
// state again.
func (n *Node) livedSince() bool {
	_, noExport := os.Stat(n.Platform.Path(exportFile))
	_, noState := os.Stat(n.Platform.Path(platform.ConsulDataDir, "raft"))
	return errors.Is(noExport, fs.ErrNotExist) && noState == nil
}

// verifySeal compares a sealed image with its manifest, before anything of it is
// changed. What would lose data is an error; what somebody may have changed on
// purpose since, in the image or in its copy, is told.
func (n *Node) verifySeal() error {
	m := n.manifest
	if m == nil || n.manifestErr != nil {
		return n.manifestErr
	}
	if m.KV != "" && !n.livedSince() {
		have, err := n.sum(exportFile)
		if err != nil {
			return fmt.Errorf("seal manifest: the export of Consul's KV cannot be read: %w", err)
		}
		if have != m.KV {
			return fmt.Errorf("seal manifest: %s is not the export that the seal made: nothing was changed; copy the image anew", exportFile)
		}
	}
	if v := n.Platform.Version.String(); v != m.XiVO {
		n.Log.Warn("XiVO was upgraded in the image after the seal", "sealed", m.XiVO, "now", v)
	}
	for _, path := range slices.Sorted(maps.Keys(m.Files)) {
		if have, err := n.sum(path); err != nil || have != m.Files[path] {
			n.Log.Warn("a file is not as the seal installed it", "file", path)
		}
	}
	for _, op := range LastOperations() {
		if !m.Proved(op.Name) {
			n.Log.Warn("the seal was not ended, so this image may have keys that other machines have", "operation", op.Name)
		}
	}
	return nil
}

// sum is the SHA-256 of a file of this machine.
func (n *Node) sum(path string) (string, error) {
	content, err := os.ReadFile(n.Platform.Path(path))
	return seal.Sum(content), err
}

// sealExport: one that a seal left which failed is made anew, for the server ran
// on. An image that was sealed before has the export, and no Consul.
func sealExport(ctx context.Context, n *Node) (Resource, error) {
	atRest, err := kvExported(ctx, n)
	if err != nil {
		return nil, err
	}
	return n.export(func(ctx context.Context) error {
		if err := os.MkdirAll(n.Platform.Path(platform.StateDir), 0o700); err != nil {
			return err
		}
		if err := n.noOtherKV(ctx); err != nil {
			return err
		}
		up, err := n.Platform.Init.Active(ctx, "consul")
		if err != nil {
			return err
		}
		if up {
			return n.exportKV(ctx)
		}
		return atRest.Apply(ctx)
	}), nil
}

// noOtherKV is an error where a seal was cut off after it had emptied Consul,
// which ran since: the export and Consul each have a part.
func (n *Node) noOtherKV(ctx context.Context) error {
	if _, err := os.Stat(n.Platform.Path(exportFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	original, err := consul.TokenFiles(n.Platform, sealedToken).Diff(ctx)
	if err != nil || len(original) > 0 {
		return err
	}
	return fmt.Errorf("%s is what Consul held before a seal emptied it, and Consul ran since: to seal with that file, stop Consul and remove %s/raft; to seal with what Consul holds now, remove the file", exportFile, platform.ConsulDataDir)
}

var (
	sealDirectory      = withDB(func(_ *Node, db *pgx.Conn) Resource { return directory.Nothing(db) })
	sealUUIDInDatabase = withDB(func(_ *Node, db *pgx.Conn) Resource { return identity.UUIDInDatabase(db, placeholder) })
	sealServiceKeys    = withDB(func(n *Node, db *pgx.Conn) Resource { return identity.NoServiceKeys(db, n.Platform) })
)

// sealBroker restarts a broker whose management is not up yet: XiVO leaves it
// off, and federation's state can be read and removed through it only.
func sealBroker(ctx context.Context, n *Node) (Resource, error) {
	b, err := n.sealedBroker(ctx)
	if err != nil {
		return nil, err
	}
	return b.NothingFederated(), nil
}

func sealBrokerName(ctx context.Context, n *Node) (Resource, error) {
	b, err := n.sealedBroker(ctx)
	if err != nil {
		return nil, err
	}
	return b.ClusterName("xivo-sealed"), nil
}

func (n *Node) sealedBroker(ctx context.Context) (*rabbitmq.Client, error) {
	// A broker stops and starts within seconds, and in minutes where the machine
	// is emulated.
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	probe, cancelProbe := context.WithTimeout(ctx, 2*time.Second)
	defer cancelProbe()
	if b, err := n.Broker(probe); err == nil {
		return b, nil
	}
	if err := n.Platform.Init.Restart(ctx, "rabbitmq-server"); err != nil {
		return nil, err
	}
	n.reset()
	return n.Broker(ctx)
}

func sealUUIDInFiles(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.UUIDInEnvironment {
		return nothing, nil
	}
	return identity.UUIDInFiles(n.Platform, placeholder), nil
}

func sealUUIDInManager(_ context.Context, n *Node) (Resource, error) {
	if !n.Platform.Traits.UUIDInEnvironment {
		return nothing, nil
	}
	return identity.UUIDInManager(n.Platform, placeholder), nil
}

// sealServices: XiVO's command leaves both brokers running.
func sealServices(_ context.Context, n *Node) (Resource, error) {
	brokers := stopped(n, "consul", "rabbitmq-server")
	return resource{
		diff: stopped(n, "xivo-ctid", "xivo-dird", "xivo-confd", "consul", "rabbitmq-server").diff,
		apply: func(ctx context.Context) error {
			if _, err := platform.Run(ctx, n.Platform.Traits.ServiceCommand, "stop"); err != nil {
				return err
			}
			n.reset()
			return brokers.apply(ctx)
		},
	}, nil
}

// sealedToken opens nothing: a first boot replaces it before Consul starts.
const sealedToken = "5ea1ed00-0000-4000-8000-000000000000"

func sealConsulToken(_ context.Context, n *Node) (Resource, error) {
	return consul.TokenFiles(n.Platform, sealedToken), nil
}

// sealWatch: the watch would put back what the seal removes.
func sealWatch(_ context.Context, n *Node) (Resource, error) {
	return stopped(n, "xivo-mesh"), nil
}

// stopped is none of the services running.
func stopped(n *Node, services ...string) resource {
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			var up []string
			for _, s := range services {
				active, err := n.Platform.Init.Active(ctx, s)
				if err != nil {
					return nil, err
				}
				if active {
					up = append(up, s+" runs")
				}
			}
			return up, nil
		},
		apply: func(ctx context.Context) error {
			var errs []error
			for _, s := range services {
				errs = append(errs, n.Platform.Init.Stop(ctx, s))
			}
			return errors.Join(errs...)
		},
	}
}

// sealMachineID empties /etc/machine-id; an absent one would make systemd run
// its first-boot presets. D-Bus's is a link to it, or goes.
func sealMachineID(_ context.Context, n *Node) (Resource, error) {
	rs := all{seal.Emptied(n.Platform, "/etc/machine-id")}
	if st, err := os.Lstat(n.Platform.Path("/var/lib/dbus/machine-id")); err == nil && st.Mode().IsRegular() {
		rs = append(rs, seal.Gone(n.Platform, "/var/lib/dbus/machine-id"))
	}
	return rs, nil
}

// sealRandomSeed: a machine that is switched off as it should be would write a
// seed again, as long as the unit is up that does so when it stops.
func sealRandomSeed(_ context.Context, n *Node) (Resource, error) {
	const unit, seed = "systemd-random-seed", "/var/lib/systemd/random-seed"
	writer, seeds := stopped(n, unit), seal.Gone(n.Platform, seed, "/var/lib/urandom/random-seed")
	return resource{
		diff: func(ctx context.Context) ([]string, error) {
			found, err := seeds.Diff(ctx)
			if err != nil {
				return nil, err
			}
			up, err := writer.diff(ctx)
			if len(up) > 0 && !slices.Contains(found, seed) {
				found = append(found, seed+" will be written at shutdown")
			}
			return found, err
		},
		apply: func(ctx context.Context) error { return errors.Join(writer.apply(ctx), seeds.Apply(ctx)) },
	}, nil
}

// sealState removes all of ours but what a clone needs: a run that was killed
// leaves more than it ever names, a copy of the KV among it.
func sealState(_ context.Context, n *Node) (Resource, error) {
	return seal.Gone(n.Platform, platform.StateDir+"/*", "/etc/xivo-firstboot/config.yml").But(exportFile, manifestFile, lockFile), nil
}

func sealLogs(_ context.Context, n *Node) (Resource, error) {
	return all{seal.Gone(n.Platform, "/var/log/journal/*", "/var/backups/xivo/*"), seal.NoLogs(n.Platform, "/var/log")}, nil
}

// installedFiles are the paths of what `installed` puts into the image.
func installedFiles() []string {
	paths := []string{BinaryPath}
	for _, f := range cloudinit.ImageFiles() {
		paths = append(paths, f.Path)
	}
	return paths
}

func imageFiles(p *platform.Platform) []seal.File {
	var files []seal.File
	for _, f := range cloudinit.ImageFiles() {
		files = append(files, seal.File{Platform: p, Path: f.Path, Content: f.Content, Mode: f.Mode})
	}
	return files
}

// installed is this program and its units being on the machine, and enabled for
// the next boot: links, and no reload, so that nothing holds a running XiVO.
func installed(_ context.Context, n *Node) (Resource, error) {
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	rs := all{seal.File{Platform: n.Platform, Path: BinaryPath, Content: binary, Mode: 0o755}}
	for _, f := range imageFiles(n.Platform) {
		rs = append(rs, f)
	}
	for _, l := range cloudinit.Links() {
		rs = append(rs, seal.Link{Platform: n.Platform, Path: l.Path, Target: l.Target})
	}
	return rs, nil
}
