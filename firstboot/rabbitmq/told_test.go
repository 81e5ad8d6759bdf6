package rabbitmq

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
)

// theirs is in each value that somebody else may have written.
const theirs = "hunter2"

// What a broker has is somebody else's where it is not as wanted: plans, reports and
// manifests tell what it is, and not what it says.
func TestNothingIsToldThatSomebodyElseWrote(t *testing.T) {
	c := answering(t, map[string]string{
		"GET /api/parameters/federation-upstream/%2F/own": `200 {"vhost":"/","name":"own","value":{"uri":"amqp://u:hunter2@192.0.2.9/v?password=hunter2",
			"ack-mode":"hunter2","exchange":"hunter2","queue":"hunter2","max-hops":3,"expires":1800000,"message-ttl":300000,"reconnect-delay":5}}`,
		"GET /api/parameters/federation-upstream/": `200 [{"vhost":"/","name":"hunter2","value":{}},{"vhost":"/","name":"xivo-hunter2","value":{}}]`,
		"GET /api/parameters/federation-upstream":  `200 [{"vhost":"/","name":"hunter2","value":{}},{"vhost":"/","name":"xivo-hunter2","value":{}}]`,
		"GET /api/policies/%2F":                    `200 [{"vhost":"/","name":"xivo-mesh","pattern":"hunter2","apply-to":"all","priority":4,"definition":{"federation-upstream":"hunter2"}}]`,
		"GET /api/users/":                          `200 [{"name":"guest"},{"name":"xivo-mesh-hunter2"}]`,
		"GET /api/users/own":                       `200 {"name":"own","password_hash":"hunter2","tags":"hunter2"}`,
		"GET /api/users/own/permissions":           `200 [{"user":"own","vhost":"/","configure":"hunter2","write":"","read":"hunter2"}]`,
		"GET /api/queues/%2F":                      `200 [{"name":"federation: xivo -> hunter2","consumers":0}]`,
		"GET /api/cluster-name/":                   `200 {"name":"hunter2"}`,
	})
	for name, r := range map[string]struct {
		resource engine.Resource
		want     []string
	}{
		"an upstream": {c.Upstream(Upstream{Name: "own", Host: "192.0.2.1", Account: "a", Password: "p", MaxHops: 1, Links: 1}), []string{
			"upstream own (192.0.2.1): uri is amqp://192.0.2.9/v, wanted amqp://192.0.2.1",
			"upstream own (192.0.2.1): max-hops is 3, wanted 1",
			"upstream own (192.0.2.1): ack-mode differs",
			"upstream own (192.0.2.1): exchange differs",
			"upstream own (192.0.2.1): queue differs",
		}},
		"the policy":   {c.Policy(), []string{"policy xivo-mesh does not federate exchange xivo, and only it, with all upstreams"}},
		"an account":   {c.FederationUser("own", "p"), []string{"user own has another password", "user own has tags, wanted none", "user own has other rights than its own queues and reading the bus"}},
		"the name":     {c.ClusterName("xivo-sealed"), []string{"the cluster name is another one"}},
		"what is tied": {c.NoFederation(), []string{"still there: accounts of a mesh (1)", "still there: queues of downstreams (1)", "still there: the policy xivo-mesh (1)", "still there: upstreams (2)"}},
	} {
		t.Run(name, func(t *testing.T) {
			diff, err := r.resource.Diff(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(r.want, diff); d != "" {
				t.Error(d)
			}
			if said := strings.Join(diff, " "); strings.Contains(said, theirs) {
				t.Errorf("it is told: %s", said)
			}
		})
	}
}
