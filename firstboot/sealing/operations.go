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
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/postgres"
)

// Operation is a step of the seal.
type Operation struct {
	engine.Step[*node.Node]
	// Counterpart gives a clone, at its first boot, its own of what was taken out.
	Counterpart Counterpart
	// NeededByClones: without it no clone becomes, so that nothing may be taken out
	// whose counterpart is a step of ours.
	NeededByClones bool
	// Needs is the operation without which what this one takes out would be lost.
	Needs string
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
	p := engine.Phase[*node.Node]{Name: "seal", Text: "take every identity out of this machine", Deadline: patience}
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
		{Step: step{Name: "watch", Text: "the watch of a node is stopped", Open: node.Plain(watchStopped)}, Counterpart: by("systemd starts it")},
		{Step: step{Name: kvexport.ExportStep, Text: "Consul's KV is exported", Open: node.Plain(kvExported)}, Counterpart: firstBoot("settle." + kvexport.ImportStep)},
		{Step: step{Name: "kv-tokens", Text: "no token with which somebody is logged in is in the export", Open: node.Plain(exportOfNobody)}, Counterpart: by("xivo-auth gives new ones")},
		{Step: step{Name: "directory-rows", Text: "directory sources and the account of a mesh are gone", When: (*node.Node).Joinable, Open: node.WithDB(directoryRemoved)}, Counterpart: firstBoot("converge.directories")},
		{Step: step{Name: "rabbitmq-plugins", Text: "RabbitMQ's management and federation are enabled in its file", Open: node.Plain(brokerPlugins)}, Counterpart: firstBoot("become.rabbitmq-plugins")},
		{Step: step{Name: "rabbitmq-management", Text: "RabbitMQ's management listens on loopback only", Open: node.Plain(brokerManagement)}, Counterpart: firstBoot("become.rabbitmq-management")},
		{Step: step{Name: node.SealedFederation, Text: "federation users, upstreams and policies are gone", Deadline: brokerStart, Open: withBroker(federationRemoved)}, Counterpart: firstBoot("converge.rabbitmq-account")},
		{Step: step{Name: node.SealedBrokerName, Text: "the broker's cluster name is a placeholder", Deadline: brokerStart, Open: withBroker(brokerNameRemoved)}, Counterpart: firstBoot("settle.rabbitmq-name")},
		{Step: step{Name: "rabbitmq-tables", Text: "RabbitMQ's tables are written anew, without what was deleted", Deadline: brokerStart, Open: brokerRewritten}, Counterpart: by("none is needed")},
		{Step: step{Name: node.SealedUUID, Text: "the XiVO UUID in the database is a placeholder", Open: node.WithDB(uuidInDatabase)}, Counterpart: firstBoot("become.uuid-database"), NeededByClones: true},
		{Step: step{Name: "service-keys", Text: "the keys of XiVO's own service accounts are gone", Open: node.WithDB(serviceKeysRemoved)}, Counterpart: firstBoot("become.service-keys")},
		{Step: step{Name: "services", Text: "XiVO, Consul and RabbitMQ are stopped", Open: node.Plain(servicesStopped)}, Counterpart: by("systemd starts them")},
		{Step: step{Name: "postgres-rows", Text: "PostgreSQL's tables are written anew, without rows of before", Deadline: longTime, Open: withCluster(postgres.Cluster.Rewritten)}, Counterpart: by("none is needed")},
		{Step: step{Name: "postgres-wal", Text: "PostgreSQL is stopped, and its log holds no changes", Open: withCluster(postgres.Cluster.NoOldWAL)}, Counterpart: by("systemd starts it")},
		{Step: step{Name: "uuid-files", Text: "the XiVO UUID in files is a placeholder", When: node.UUIDInEnvironment, Open: node.Plain(uuidInFiles)}, Counterpart: firstBoot("become.uuid-files")},
		{Step: step{Name: "uuid-manager", Text: "the XiVO UUID in the service manager is a placeholder", When: node.UUIDInEnvironment, Open: node.Plain(uuidInManager)}, Counterpart: firstBoot("become.uuid-manager")},
		// First: by it, a seal that was cut off after the next one knows that what Consul
		// holds since is not the KV.
		{Step: step{Name: "consul-token", Text: "Consul's master token is a placeholder, in every file that holds it", Open: node.Plain(consulToken)}, Counterpart: firstBoot("become.consul-token")},
		{Step: step{Name: kvexport.EmptyStep, Text: "Consul's raft, serf, keyrings, services, checks and node id are gone", Open: node.Plain(consulEmptied)}, Counterpart: firstBoot("become." + kvexport.EmptyStep), Needs: kvexport.ExportStep},
		{Step: step{Name: "consul-config", Text: "Consul's mesh configuration is gone", Open: absent(platform.ConsulConfigDir + "/interconnection.json")}, Counterpart: firstBoot("become.consul-config")},
		{Step: step{Name: "ctid-config", Text: "xivo-ctid's mesh configuration is gone", Open: absent(ctid.ConfigFiles...)}, Counterpart: firstBoot("become.ctid-config")},
		{Step: step{Name: "erlang-cookie", Text: "the Erlang cookie is gone", Open: absent(platform.RabbitDataDir + "/.erlang.cookie")}, Counterpart: by("RabbitMQ makes one when it starts")},
		{Step: step{Name: "certificate", Text: "the TLS key and certificate are gone", Open: absent(platform.CertificateFile, platform.CertificateKey)}, Counterpart: firstBoot("become.certificate")},
		{Step: step{Name: "machine-id", Text: "the machine id is empty", Open: machineID}, Counterpart: by("systemd makes one at boot")},
		{Step: step{Name: "dhcp-leases", Text: "DHCP leases are gone", Open: absent("/var/lib/dhcp/*.lease*", "/var/lib/NetworkManager/*.lease")}, Counterpart: by("the DHCP client asks anew")},
		{Step: step{Name: "udev-net-rules", Text: "interface names are not tied to hardware addresses", Open: absent("/etc/udev/rules.d/70-persistent-net.rules")}, Counterpart: by("udev writes it where it uses it")},
		{Step: step{Name: "random-seed", Text: "the random seed is gone", Open: node.Plain(randomSeed)}, Counterpart: by("systemd saves one at shutdown")},
		{Step: step{Name: "shell-history", Text: "shell histories are gone", Open: absent("/root/.*_history", "/home/*/.*_history", "/var/lib/postgresql/.*_history")}, Counterpart: by("none is needed")},
		{Step: step{Name: "apt-cache", Text: "the apt cache is gone", Open: absent("/var/cache/apt/archives/*.deb", "/var/cache/apt/*.bin", "/var/lib/apt/lists/*_*")}, Counterpart: by("apt-get update")},
		{Step: step{Name: "logs", Text: "logs are empty", Open: node.Plain(logs)}, Counterpart: by("the daemons write on")},
		{Step: step{Name: "temporary-files", Text: "/tmp and /var/tmp are empty", Open: node.Plain(temporaryFiles)}, Counterpart: by("none is needed")},
		{Step: step{Name: "cloud-init", Text: "cloud-init's state is gone", Open: absent("/var/lib/cloud/*", "/var/log/cloud-init*.log", "/etc/network/interfaces.d/50-cloud-init*")}, Counterpart: by("cloud-init runs as on a new machine")},
		{Step: step{Name: "our-state", Text: "journal, document and state of a node are gone", Open: node.Plain(nodeState)}, Counterpart: firstBoot("converge.document")},
		{Step: step{Name: installStep, Text: "xivo-firstboot and its units are installed", Open: install}, Counterpart: by("they run at the first boot"), NeededByClones: true},
	}
}

// LastOperations come after the manifest was brought home: the connection that
// brings it needs what they take away. The last of them write over what all others
// have freed.
func LastOperations() []Operation {
	return []Operation{
		{Step: step{Name: "build-ssh-key", Text: "authorized SSH keys are gone", Open: absent("/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*")}, Counterpart: by("cloud-init installs those of the user data")},
		{Step: step{Name: "ssh-host-keys", Text: "SSH host keys are gone", Open: absent("/etc/ssh/ssh_host_*_key", "/etc/ssh/ssh_host_*_key.pub")}, Counterpart: firstBoot("become.ssh-host-keys")},
		{Step: step{Name: "swap", Text: "swap areas are off, and zeros", When: ownKernel, Deadline: longTime, Open: node.Plain(swapEmptied)}, Counterpart: by("systemd uses them again")},
		{Step: step{Name: "fs-journal", Text: "the journals of ext3 and ext4 hold no blocks of before", When: ownDisk, Deadline: longTime, Open: node.Plain(journalsOverwritten)}, Counterpart: by("none is needed")},
		{Step: step{Name: "free-space", Text: "what is free of the disks is zeros", When: engine.First(ownDisk, ownKernel), Deadline: longTime, Open: node.Plain(freeSpaceZeroed)}, Counterpart: by("none is needed")},
	}
}

// AllOperations are the operations and the last ones.
func AllOperations() []Operation { return append(Operations(), LastOperations()...) }
