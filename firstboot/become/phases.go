// Package become holds the steps of the two phases that run once: become, which
// takes on an identity, and settle, which puts back what that took out of Consul
// and the broker. Its subject is the node; only firstboot imports it.
package become

import (
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/kvexport"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

type (
	phase = engine.Phase[*node.Node]
	step  = engine.Step[*node.Node]
)

// Phase is become. Neither Consul nor RabbitMQ may run, but for kv-export, which
// `run` does before it stops them.
var Phase = phase{
	Name: node.Become,
	Text: "take on an identity, before Consul and RabbitMQ start",
	Once: true,
	Steps: []step{
		{Name: "ssh-host-keys", Text: "this machine has SSH host keys of its own", When: hasSSH, Open: node.Plain(sshHostKeys)},
		{Name: kvexport.ExportStep, Text: "Consul's KV is exported before its state goes", Open: node.Plain(kvExported)},
		{Name: "hostname", Text: "the host name is the same in files and database", KeptForLife: true, Open: node.WithDB(hostname)},
		{Name: "uuid-database", Text: "the XiVO UUID in the database", KeptForLife: true, Open: node.WithDB(uuidInDatabase)},
		{Name: "uuid-files", Text: "the XiVO UUID in the files that daemons start from", KeptForLife: true, When: node.UUIDInEnvironment, Open: node.Plain(uuidInFiles)},
		{Name: "uuid-manager", Text: "the XiVO UUID in the service manager", KeptForLife: true, When: node.UUIDInEnvironment, Open: node.Plain(uuidInManager)},
		{Name: "overlay-key", Text: "a key pair of this node's own for the mesh's network", Open: node.Plain((*node.Node).OverlayKey)},
		{Name: "overlay-address", Text: "an address in the mesh's network, which no other member has", After: "overlay-key", Open: node.Plain((*node.Node).AddressDrawn)},
		{Name: "overlay-network", Text: "the address is on this machine, and no other way leads to the others", When: node.InOwnNetwork, After: "overlay-address", Open: addressed},
		{Name: "old-keys", Text: "service keys, TLS key and Erlang cookie of the original are gone", When: notAdopted, Open: node.WithDB(oldKeysRemoved)},
		{Name: "service-keys", Text: "the keys of XiVO's own service accounts are new", When: notAdopted, After: "old-keys", Open: node.WithDB(serviceKeys)},
		{Name: "certificate", Text: "a TLS key and certificate that are this node's own", After: "old-keys", Open: node.Plain(certificate)},
		{Name: "rabbitmq-plugins", Text: "RabbitMQ's management is enabled; federation too, but on a copy", Open: node.Plain(brokerPlugins)},
		{Name: "rabbitmq-management", Text: "RabbitMQ's management listens on loopback only", Open: node.Plain(brokerManagement)},
		{Name: "ctid-config", Text: "xivo-ctid listens and registers at this node's address", Open: node.Plain((*node.Node).CtidConfig)},
		{Name: kvexport.EmptyStep, Text: "Consul's old state is gone, but not its tokens", Open: node.Plain(consulEmptied)},
		// Not before that: an older Consul finds no leader with the state of
		// another address. What is wrong with its folder is found by the plan.
		{Name: "consul-config", Text: "Consul has this node's name and address", Open: node.Plain((*node.Node).ConsulConfig)},
		{Name: "consul-token", Text: "Consul's master token is this node's, in every file that holds it", KeptForLife: true, Open: node.Plain(consulTokens)},
	},
}

// SettlePhase is settle. Consul and RabbitMQ run, XiVO's daemons do not.
var SettlePhase = phase{
	Name: node.Settle,
	Text: "put the KV back and set the broker up, before XiVO's daemons start",
	Once: true,
	Steps: []step{
		// First, and whatever the broker does: it is people's contacts.
		{Name: kvexport.ImportStep, Text: "Consul's KV is back, bit for bit", Open: kvImported},
		{Name: kvexport.RetireStep, Text: "the export is gone, now that its restore was verified", Open: node.Plain(exportRetired)},
		// In this order: a broker that federates with the name or the upstreams of
		// the node that it was copied from takes that node's messages.
		{Name: "rabbitmq-clean", Text: "nothing is left of another node's federation", When: notAdopted, Open: node.WithBroker(brokerCleaned)},
		{Name: "rabbitmq-name", Text: "the broker's cluster name is this node's", Open: node.WithBroker(brokerName)},
		{Name: "rabbitmq-federation", Text: "RabbitMQ's federation runs", Open: node.WithBroker((*node.Node).Federation)},
	},
}

// notAdopted: what belongs to the identity of a server that was adopted is kept,
// and so is what an operator federated by hand.
func notAdopted(n *node.Node) engine.Skip {
	if n.Identity().Adopted {
		return "this server was adopted, and keeps its own"
	}
	return ""
}
