package rabbitmq

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"strings"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

const policyName = "xivo-mesh"

var wantedPolicy = rabbithole.Policy{
	Vhost: vhost,
	Name:  policyName,
	// Anchored: an open pattern also takes exchanges that only contain the word.
	Pattern:    "^" + exchange + "$",
	ApplyTo:    "exchanges",
	Priority:   1,
	Definition: rabbithole.PolicyDefinition{"federation-upstream-set": "all"},
}

// policy is the resource of Client.Policy.
type policy struct{ client *Client }

// Policy federates the exchange xivo, and nothing else, with all upstreams.
// Only one policy counts for an exchange: where somebody's own one is as
// strong and federates in another way, Diff says so and Apply fails, because
// removing it is for a person to decide.
func (c *Client) Policy() engine.Resource { return policy{c} }

func (p policy) Diff(ctx context.Context) ([]string, error) {
	diff, rivals, err := p.read(ctx)
	return append(diff, rivals...), err
}

func (p policy) Apply(ctx context.Context) error {
	if err := sent(p.client.api(ctx).PutPolicy(vhost, policyName, wantedPolicy)); err != nil {
		return fmt.Errorf("rabbitmq: set policy %s: %w", policyName, err)
	}
	_, rivals, err := p.read(ctx)
	if err == nil && len(rivals) > 0 {
		err = fmt.Errorf("rabbitmq: %s: lower its priority below %d or remove it, then run again", strings.Join(rivals, "; "), wantedPolicy.Priority)
	}
	return err
}

// read compares the policies of the broker with the wanted one. Rivals are
// policies of somebody else that win over it, or may.
func (p policy) read(ctx context.Context) (diff, rivals []string, err error) {
	policies, err := p.client.api(ctx).ListPoliciesIn(vhost)
	if err != nil {
		return nil, nil, fmt.Errorf("rabbitmq: read the policies: %w", err)
	}
	diff = []string{fmt.Sprintf("policy %s does not exist", policyName)}
	for _, found := range policies {
		switch {
		case found.Name == policyName:
			diff = nil
			if !samePolicy(found, wantedPolicy) {
				// What it is may be anything that somebody wrote.
				diff = []string{fmt.Sprintf("policy %s does not federate exchange %s, and only it, with all upstreams", policyName, exchange)}
			}
		case keepsBus(found):
			rivals = append(rivals, fmt.Sprintf("policy %s (priority %d) keeps exchange %s from being federated", found.Name, found.Priority, exchange))
		}
	}
	return diff, rivals, nil
}

// keepsBus says whether a policy of somebody else decides for the bus, at least
// as strongly as the wanted one, and does not federate it with all upstreams.
func keepsBus(p rabbithole.Policy) bool {
	return p.Priority >= wantedPolicy.Priority && p.ApplyTo != "queues" && takesBus(p.Pattern) &&
		p.Definition["federation-upstream-set"] != "all"
}

func samePolicy(a, b rabbithole.Policy) bool {
	return a.Pattern == b.Pattern && a.ApplyTo == b.ApplyTo && a.Priority == b.Priority && maps.Equal(a.Definition, b.Definition)
}

// takesBus says whether a policy's pattern matches the bus. A pattern that is
// beyond Go's regular expressions counts as a match, so that a person looks.
func takesBus(pattern string) bool {
	re, err := regexp.Compile(pattern)
	return err != nil || re.MatchString(exchange)
}
