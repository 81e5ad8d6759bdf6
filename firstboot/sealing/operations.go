// Package sealing takes every identity out of a machine before an image is made of
// it: named operations, each with its proof, which is its own second reading, and
// with what gives a clone its own at the first boot. Its subject is the node; only
// firstboot imports it.
package sealing

import (
	"github.com/google/uuid"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/ctid"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/platform"
)

// Operation is a step of the seal.
type Operation struct {
	engine.Step[*node.Node]
	// Counterpart gives a clone, at its first boot, its own of what was taken out.
	Counterpart Counterpart
}

// Counterpart is a step of our first boot, PHASE.STEP, or else whoever does it.
type Counterpart struct{ Step, By string }

func (c Counterpart) String() string {
	if c.Step != "" {
		return "xivo-firstboot: " + c.Step
	}
	return c.By
}

func firstBoot(step string) Counterpart { return Counterpart{Step: step} }
func by(whoever string) Counterpart     { return Counterpart{By: whoever} }
func phase(operations []Operation) engine.Phase[*node.Node] {
	p := engine.Phase[*node.Node]{Name: "seal", Text: "take every identity out of this machine"}
	for _, op := range operations {
		p.Steps = append(p.Steps, op.Step)
	}
	return p
}

type step = engine.Step[*node.Node]

// Placeholders stand in a sealed image where the identity was; a first boot must
// replace them. The token opens nothing.
var placeholderUUID = uuid.Nil

const (
	placeholderToken = "5ea1ed00-0000-4000-8000-000000000000"
	placeholderName  = "xivo-sealed"
)

// Operations are the seal, in order. The broker and Consul are still up for the
// first ones.
func Operations() []Operation {
	return []Operation{
		{step{Name: "watch", Text: "the watch of a node is stopped", Open: node.Plain(watchStopped)}, by("systemd starts it")},
		{step{Name: kvexport.ExportStep, Text: "Consul's KV is exported", Open: node.Plain(kvExported)}, firstBoot("settle." + kvexport.ImportStep)},
		{step{Name: "directory-rows", Text: "directory sources and the account of a mesh are gone", When: (*node.Node).Joinable, Open: node.WithDB(directoryRemoved)}, firstBoot("converge.directories")},
		{step{Name: "rabbitmq-plugins", Text: "RabbitMQ's management and federation are enabled in its file", Open: node.Plain(brokerPlugins)}, firstBoot("become.rabbitmq-plugins")},
		{step{Name: "rabbitmq-management", Text: "RabbitMQ's management listens on loopback only", Open: node.Plain(brokerManagement)}, firstBoot("become.rabbitmq-management")},
		{step{Name: node.SealedFederation, Text: "federation users, upstreams and policies are gone", Open: withBroker(federationRemoved)}, firstBoot("converge.rabbitmq-account")},
		{step{Name: node.SealedBrokerName, Text: "the broker's cluster name is a placeholder", Open: withBroker(brokerNameRemoved)}, firstBoot("settle.rabbitmq-name")},
		{step{Name: node.SealedUUID, Text: "the XiVO UUID in the database is a placeholder", Open: node.WithDB(uuidInDatabase)}, firstBoot("become.uuid-database")},
		{step{Name: "service-keys", Text: "the keys of XiVO's own service accounts are gone", Open: node.WithDB(serviceKeysRemoved)}, firstBoot("become.service-keys")},
		{step{Name: "services", Text: "XiVO, Consul and RabbitMQ are stopped", Open: node.Plain(servicesStopped)}, by("systemd starts them")},
		{step{Name: "uuid-files", Text: "the XiVO UUID in files is a placeholder", When: node.UUIDInEnvironment, Open: node.Plain(uuidInFiles)}, firstBoot("become.uuid-files")},
		{step{Name: "uuid-manager", Text: "the XiVO UUID in the service manager is a placeholder", When: node.UUIDInEnvironment, Open: node.Plain(uuidInManager)}, firstBoot("become.uuid-manager")},
		// First: by it, a seal that was cut off after the next one knows that what Consul
		// holds since is not the KV.
		{step{Name: "consul-token", Text: "Consul's master token is a placeholder, in every file that holds it", Open: node.Plain(consulToken)}, firstBoot("become.consul-token")},
		{step{Name: kvexport.EmptyStep, Text: "Consul's raft, serf, keyrings, services, checks and node id are gone", Open: node.Plain(consulEmptied)}, firstBoot("become." + kvexport.EmptyStep)},
		{step{Name: "consul-config", Text: "Consul's mesh configuration is gone", Open: absent(platform.ConsulConfigDir + "/interconnection.json")}, firstBoot("become.consul-config")},
		{step{Name: "ctid-config", Text: "xivo-ctid's mesh configuration is gone", Open: absent(ctid.ConfigFiles...)}, firstBoot("become.ctid-config")},
		{step{Name: "erlang-cookie", Text: "the Erlang cookie is gone", Open: absent(platform.RabbitDataDir + "/.erlang.cookie")}, by("RabbitMQ makes one when it starts")},
		{step{Name: "certificate", Text: "the TLS key and certificate are gone", Open: absent(platform.CertificateFile, platform.CertificateKey)}, firstBoot("become.certificate")},
		{step{Name: "machine-id", Text: "the machine id is empty", Open: machineID}, by("systemd makes one at boot")},
		{step{Name: "dhcp-leases", Text: "DHCP leases are gone", Open: absent("/var/lib/dhcp/*.lease*", "/var/lib/NetworkManager/*.lease")}, by("the DHCP client asks anew")},
		{step{Name: "udev-net-rules", Text: "interface names are not tied to hardware addresses", Open: absent("/etc/udev/rules.d/70-persistent-net.rules")}, by("udev writes it where it uses it")},
		{step{Name: "random-seed", Text: "the random seed is gone", Open: node.Plain(randomSeed)}, by("systemd saves one at shutdown")},
		{step{Name: "shell-history", Text: "shell histories are gone", Open: absent("/root/.*_history", "/home/*/.*_history", "/var/lib/postgresql/.*_history")}, by("none is needed")},
		{step{Name: "apt-cache", Text: "the apt cache is gone", Open: absent("/var/cache/apt/archives/*.deb", "/var/cache/apt/*.bin", "/var/lib/apt/lists/*_*")}, by("apt-get update")},
		{step{Name: "logs", Text: "logs are empty", Open: node.Plain(logs)}, by("the daemons write on")},
		{step{Name: "cloud-init", Text: "cloud-init's state is gone", Open: absent("/var/lib/cloud/*", "/var/log/cloud-init*.log", "/etc/network/interfaces.d/50-cloud-init*")}, by("cloud-init runs as on a new machine")},
		{step{Name: "our-state", Text: "journal, document and state of a node are gone", Open: node.Plain(nodeState)}, firstBoot("converge.document")},
		{step{Name: installStep, Text: "xivo-firstboot and its units are installed", Open: install}, by("they run at the first boot")},
	}
}

// LastOperations come after the manifest was brought home: the connection that
// brings it needs what they take away.
func LastOperations() []Operation {
	return []Operation{
		{step{Name: "build-ssh-key", Text: "authorized SSH keys are gone", Open: absent("/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*")}, by("cloud-init installs those of the user data")},
		{step{Name: "ssh-host-keys", Text: "SSH host keys are gone", Open: absent("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub")}, firstBoot("become.ssh-host-keys")},
	}
}

// AllOperations are the operations and the last ones.
func AllOperations() []Operation { return append(Operations(), LastOperations()...) }
