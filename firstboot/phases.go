package firstboot

// The phases, in the order in which they happen. `run`, `plan`, `--help` and the
// documentation read these lists; there is no second one.

// kvExport is the step that `run` takes before it stops Consul.
const kvExport = "kv-export"

// BecomePhase is the first one.
var BecomePhase = Phase{
	Name: "become",
	Text: "take on an identity, before Consul and RabbitMQ start",
	Once: true,
	Steps: []Step{
		{"ssh-host-keys", "this machine has SSH host keys of its own", sshHostKeys},
		{kvExport, "Consul's KV is exported before its state goes", kvExported},
		{"hostname", "the host name is the same in files and database", hostname},
		{"uuid-database", "the XiVO UUID in the database", uuidInDatabase},
		{"uuid-files", "the XiVO UUID in the files that daemons start from", uuidInFiles},
		{"uuid-manager", "the XiVO UUID in the service manager", uuidInManager},
		{"old-keys", "service keys, TLS key and Erlang cookie of the original are gone", oldKeysGone},
		{"service-keys", "the keys of XiVO's own service accounts are new", serviceKeys},
		{"certificate", "a TLS key and certificate that are this node's own", certificate},
		{"rabbitmq-plugins", "RabbitMQ's management is enabled; federation too, but on a copy", brokerStart},
		{"rabbitmq-management", "RabbitMQ's management listens on loopback only", brokerManagement},
		{"ctid-config", "xivo-ctid listens and registers at this node's address", ctidConfig},
		{"consul-state", "Consul's old state is gone, but not its tokens", consulEmptied},
		// Not before that: an older Consul finds no leader with the state of
		// another address. What is wrong with its folder is found by the plan.
		{"consul-config", "Consul has this node's name and address", consulConfig},
		{"consul-token", "Consul's master token is the mesh's, in every file that holds it", consulTokens},
	},
}

// SettlePhase follows it once Consul and RabbitMQ are up.
var SettlePhase = Phase{
	Name: "settle",
	Text: "put the KV back and set the broker up, before XiVO's daemons start",
	Once: true,
	Steps: []Step{
		// First, and whatever the broker does: it is people's contacts.
		{"kv-import", "Consul's KV is back, bit for bit", kvImported},
		{"kv-retire", "the export is gone, now that its restore was verified", kvRetired},
		// In this order: a broker that federates with the name or the upstreams of
		// the node that it was copied from takes that node's messages.
		{"rabbitmq-clean", "nothing is left of another node's federation", brokerClean},
		{"rabbitmq-name", "the broker's cluster name is this node's", brokerName},
		{"rabbitmq-federation", "RabbitMQ's federation runs", brokerFederation},
	},
}

// ConvergePhase is repeated from then on.
var ConvergePhase = Phase{
	Name: "converge",
	Text: "make this node match the mesh, again and again",
	Steps: []Step{
		{"document", "the last good document is kept", keptDocument},
		{"registration", "this node tells the others about itself", registered},
		{"web-service", "the others may read this node's users", sharing(webService)},
		{"rabbitmq-account", "the mesh's federation account, with the least rights that work", brokerAccount},
		{"rabbitmq-federation", "RabbitMQ's federation runs", brokerFederation},
		{"rabbitmq-policy", "the exchange xivo, and only it, is federated", brokerPolicy},
		{"wan", "this node is in Consul's WAN with its peers", sharing(inWAN)},
		{"members", "who is in the mesh", sharing(membersKnown)},
		{"firewall", "the ports that we opened are open to the mesh only", firewallRules},
		{"upstreams", "a federation upstream for every link", sharing(upstreams)},
		{"directories", "a directory source for every member", sharing(directories)},
		{"dird", "xivo-dird has read its sources", sharing(dirdRestarted)},
		// Once more: what it consists of changes when XiVO is upgraded.
		{"ctid-config", "xivo-ctid listens and registers at this node's address", ctidConfig},
		{"ctid-ng", "xivo-ctid-ng has credentials for every member", sharing(credentialsOfPeers)},
		{"ctid", "xivo-ctid is registered at this node's address", sharing(ctidRegistered)},
		{"canary", "a message goes to every member and back", sharing(canaryAnswered)},
		{"presences", "xivo-ctid looks newcomers up", sharing(presencesOpened)},
		{"notices", "what a person should put right is told, and left alone", noticed},
	},
}

// Phases returns the phases of a node's life after the bake, in order.
func Phases() []Phase { return []Phase{BecomePhase, SettlePhase, ConvergePhase} }

// follows names the steps whose change is decided by another's: what they find
// cannot be told before that one is done.
var follows = map[string]string{
	"become.service-keys": "become.old-keys",
	"become.certificate":  "become.old-keys",
	"converge.dird":       "converge.directories",
}

// Settled says whether this instance became and settled.
func (n *Node) Settled() bool {
	return n.Journal != nil && n.Journal.Finished(BecomePhase) && n.Journal.Finished(SettlePhase)
}
