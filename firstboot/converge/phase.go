package converge

import (
	"time"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/node"
)

// stepTime bounds one look and one step of a pass, whatever it waits for.
const stepTime = 45 * time.Second

type step = engine.Step[*Pass]

// Phase is what a pass applies.
var Phase = engine.Phase[*Pass]{
	Name:     "converge",
	Text:     "make this node match the mesh, again and again",
	GoOn:     true,
	Deadline: stepTime,
	Steps: []step{
		{Name: "document", Text: "the last good document is kept", When: documentInForce, Open: plain(documentKept)},
		{Name: "address", Text: "this node's address in the mesh's network is on this machine, and no other way leads there", When: inOwnNetwork, Open: addressed},
		{Name: "firewall", Text: "the mesh's ports are closed to everybody else", When: firewallWanted, Open: plain(firewall)},
		{Name: "overlay-address", Text: "no other member has this node's address", When: inOwnNetwork, Open: plain(addressFree)},
		{Name: "overlay", Text: "the service of the mesh's network runs, with the peers of the document", Open: plain(overlayRuns)},
		{Name: "consul-anonymous", Text: "the others' daemons may ask this node's Consul where XiVO's services are", When: engine.First(joinable, withoutAnonymous), Open: withConsul(anonymousServices)},
		{Name: "web-service", Text: "the others may read this node's users", When: joinable, Open: withDB(account)},
		{Name: "rabbitmq-account", Text: "the mesh's federation account, with the least rights that work", Open: withBroker(federationAccount)},
		// A plugin that is enabled in part keeps the broker from federating: it gets its
		// full time.
		{Name: "rabbitmq-federation", Text: "RabbitMQ's federation runs", Deadline: node.FederationTime, Open: withBroker(federation)},
		{Name: "rabbitmq-policy", Text: "the exchange xivo, and only it, is federated", Open: withBroker(policy)},
		{Name: "wan", Text: "this node is in Consul's WAN with the others", When: engine.First(joinable, reachesOrKeepsOut), Open: wan},
		{Name: "members", Text: "who is in the mesh is kept on the disk", When: joinable, Open: members},
		// So does a link that comes only when the plugin is enabled anew.
		{Name: "upstreams", Text: "a federation upstream for every link", Deadline: node.FederationTime, When: joinable, After: "rabbitmq-federation", Open: upstreams},
		{Name: "directories", Text: "a directory source for every member", When: joinable, Open: directories},
		{Name: "dird", Text: "xivo-dird has read its sources", When: joinable, After: "directories", Open: dirdRestarted},
		// Once more: what it consists of changes when XiVO is upgraded.
		{Name: "ctid-config", Text: "xivo-ctid listens and registers at this node's address", Open: plain(ctidConfig)},
		{Name: "ctid-ng", Text: "xivo-ctid-ng has credentials for every member", When: engine.First(joinable, usesCredentials), Open: plain(credentialsOfMembers)},
		{Name: "ctid", Text: "xivo-ctid is registered at this node's address", When: joinable, Open: withConsul(ctidRegistered)},
		{Name: "presences", Text: "xivo-ctid looks newcomers up", When: engine.First(joinable, asksPeers, hasMembers), Open: presencesOpened},
	},
}

// inOwnNetwork is node's, of the pass's node.
func inOwnNetwork(p *Pass) engine.Skip { return node.InOwnNetwork(p.Node) }

// firewallWanted is node's.
func firewallWanted(p *Pass) engine.Skip { return node.WantsFirewall(p.Node) }

// withoutAnonymous: XiVO's package sees to it at each start of Consul from 16.15 on.
func withoutAnonymous(p *Pass) engine.Skip {
	if p.Node.Platform.Traits.AnonymousServices {
		return engine.Skip("the Consul of XiVO " + p.Node.Platform.Version.String() + " lets them")
	}
	return ""
}

// joinable is node's.
func joinable(p *Pass) engine.Skip { return p.Node.Joinable() }

func documentInForce(p *Pass) engine.Skip {
	if p.Node.Document.Err != nil {
		return "the last good one is in force, and is kept already"
	}
	return ""
}

func reachesOrKeepsOut(p *Pass) engine.Skip {
	if p.Decision.KeepsOut == "" && len(p.Decision.Join) == 0 && p.View.Marks.LeftWAN == "" && p.View.WAN.Err == nil && p.View.Overlay.Err == nil {
		return "no other member is reached"
	}
	return ""
}

func hasMembers(p *Pass) engine.Skip {
	if len(p.Decision.Members) == 0 {
		return "this node knows no other"
	}
	return ""
}

func usesCredentials(p *Pass) engine.Skip {
	if !p.Node.Platform.Traits.PresenceCredentials {
		return engine.Skip("XiVO " + p.Node.Platform.Version.String() + " asks its peers without credentials")
	}
	return ""
}

func asksPeers(p *Pass) engine.Skip {
	if !p.Node.Platform.Traits.CtidAsksPeers {
		return engine.Skip("the xivo-ctid of XiVO " + p.Node.Platform.Version.String() + " asks no peers")
	}
	return ""
}
