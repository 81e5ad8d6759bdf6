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
		{Name: "overlay", Text: "the mesh's own network runs, with the peers of the document", When: onOverlay, Open: plain(overlayRuns)},
		{Name: "registration", Text: "this node tells the others about itself", When: onLAN, Open: withConsul(registered)},
		{Name: "consul-anonymous", Text: "the others' daemons may ask this node's Consul where XiVO's services are", When: engine.First(onOverlay, joinable, withoutAnonymous), Open: withConsul(anonymousServices)},
		{Name: "web-service", Text: "the others may read this node's users", When: joinable, Open: withDB(account)},
		{Name: "rabbitmq-account", Text: "the mesh's federation account, with the least rights that work", Open: withBroker(federationAccount)},
		// A plugin that is enabled in part keeps the broker from federating: it gets its
		// full time.
		{Name: "rabbitmq-federation", Text: "RabbitMQ's federation runs", Deadline: node.FederationTime, Open: withBroker(federation)},
		{Name: "rabbitmq-policy", Text: "the exchange xivo, and only it, is federated", Open: withBroker(policy)},
		{Name: "wan", Text: "this node is in Consul's WAN with its peers", When: engine.First(joinable, hasPeersOrKeepsOut), Open: wan},
		{Name: "members", Text: "who is in the mesh is kept, and who left it or was refused is told", When: joinable, Open: members},
		{Name: "firewall", Text: "the ports that we opened are open to the mesh only", When: firewallWanted, Open: plain(firewallRules)},
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

// onOverlay is node's.
func onOverlay(p *Pass) engine.Skip { return node.OnOverlay(p.Node) }

// withoutAnonymous: XiVO's package sees to it at each start of Consul from 16.15 on.
func withoutAnonymous(p *Pass) engine.Skip {
	if p.Node.Platform.Traits.AnonymousServices {
		return engine.Skip("the Consul of XiVO " + p.Node.Platform.Version.String() + " lets them")
	}
	return ""
}

func onLAN(p *Pass) engine.Skip {
	if p.Node.HasOverlay() {
		return "the mesh's own network tells it"
	}
	return ""
}

// joinable is node's, of the pass's node.
func joinable(p *Pass) engine.Skip { return p.Node.Joinable() }

func documentInForce(p *Pass) engine.Skip {
	if p.Node.Document.Err != nil {
		return "the last good one is in force, and is kept already"
	}
	return ""
}

func hasPeersOrKeepsOut(p *Pass) engine.Skip {
	if p.Decision.KeepsOut == "" && len(p.Decision.Join) == 0 && p.View.Marks.LeftWAN == "" && p.View.WAN.Err == nil && p.View.Peers.Err == nil {
		return "the document names no other node"
	}
	return ""
}

func hasMembers(p *Pass) engine.Skip {
	if len(p.Decision.Members) == 0 {
		return "this node knows no other"
	}
	return ""
}

func firewallWanted(p *Pass) engine.Skip {
	if !p.View.Document.Firewall.Enabled {
		return "the document switches it off"
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
