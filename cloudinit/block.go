package cloudinit

import (
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// field is one key of a mapping.
type field struct {
	key string
	// need is what to do when the key is missing; "" if it has a default.
	need string
	// fields is set if the value is a mapping, value if it is anything else. Of a
	// mapping with rules of its own, read reads it in place of its fields.
	fields []field
	value
}

// value is one value of the document, both ways: read takes it from YAML, write
// returns what YAML is to say, nil where the key is left out.
type value struct {
	read  func(n *yaml.Node, path string)
	write func() any
}

// reserved keys are refused today, so that they can mean something tomorrow.
var reserved = map[string]string{
	"tls":    "certificates of the mesh are not managed yet",
	"wizard": "XiVO's wizard is passed by a person for now",
	"hooks":  "there are no hooks yet",
	// Half a change would be worse than none: accounts and upstreams can live
	// beside those of another secret, but gossip with another key is cut off.
	"previous_secret": "the secret of a mesh cannot be changed while it runs yet",
}

// fields is the block: what it may say, and where in c that goes. It is read, and
// written, from this one list.
func (r *reader) fields(c *Config) []field {
	return []field{
		{key: "version", value: value{r.version, func() any { return c.Version }}, need: "write `version: 1`"},
		{key: "peers", value: r.list(&c.Peers, host), need: "list any nodes of the mesh, or write `peers: []` for the first one"},
		{key: "secret", value: r.secret(c)},
		{key: "secret_file", value: value{r.string(&c.SecretFile, absolute).read, func() any { return unless(c.Secret != "", c.SecretFile) }}},
		{key: "network", fields: networkFields(r, &c.Network), value: r.network(&c.Network)},
		{key: "advertise", value: r.advertise(&c.Advertise)},
		{key: "identity", value: r.choice(&c.Identity, IdentityAuto, IdentityKeep, IdentityRegenerate)},
		{key: "topology", value: r.choice(&c.Topology, TopologyMesh, TopologyRing, TopologyHub)},
		{key: "hub", value: r.string(&c.Hub, host)},
		{key: "directory", fields: []field{
			{key: "contexts", value: r.contexts(&c.Directory.Contexts)},
			{key: "verify_certificate", value: r.bool(&c.Directory.VerifyCertificate)},
			{key: "ca_file", value: value{r.string(&c.Directory.CAFile, absoluteOrNone).read, func() any { return c.Directory.CAFile }}},
		}},
		{key: "consul", fields: []field{
			{key: "encrypt", value: r.bool(&c.Consul.Encrypt)},
		}},
		{key: "firewall", fields: []field{
			{key: "enabled", value: r.bool(&c.Firewall.Enabled)},
			{key: "allow", value: r.list(&c.Firewall.Allow, network)},
			{key: "metadata", value: r.string(&c.Firewall.Metadata, metadata)},
		}},
	}
}

// written spells every key out that has a value: what is kept then means the same
// to a later program, whatever its defaults are.
func written(fields []field) mapping {
	var m mapping
	for _, f := range fields {
		if f.fields != nil {
			m = append(m, entry{f.key, written(f.fields)})
		} else if v := f.write(); v != nil {
			m = append(m, entry{f.key, v})
		}
	}
	return m
}

// unless is a text that is left out when it is empty, or in the way of another key.
func unless(leftOut bool, s string) any {
	if leftOut || s == "" {
		return nil
	}
	return s
}

var known = names((&reader{}).fields(defaults()))

// isOurs says whether a key is one of the block's.
func isOurs(key string) bool { return reserved[key] != "" || slices.Contains(known, key) }

func names(fields []field) (keys []string) {
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	return keys
}

// block reads the block into c, and checks what concerns two keys.
func (r *reader) block(n *yaml.Node, c *Config) {
	if isNull(n) {
		r.at(n, blockKey, "the block is empty", "write at least version, peers and secret")
		return
	}
	for key, value := range pairs(n) {
		// What another version means by its keys is not known here.
		if key.Value == "version" && value.ShortTag() == "!!int" && value.Value != "1" {
			r.version(value, blockKey+".version")
			return
		}
	}
	seen := r.mapping(n, blockKey, r.fields(c))
	if seen == nil {
		return
	}

	word, file := seen["secret"], seen["secret_file"]
	switch {
	case word == nil && file == nil:
		r.at(n, blockKey+".secret", "is missing", fmt.Sprintf("write the secret that the mesh shares, at least %d characters, or secret_file", MinSecret))
	case word != nil && file != nil:
		r.at(file, blockKey+".secret_file", "there is a secret, too", "keep one of the two")
	}

	hub := seen["hub"]
	switch {
	case hub == nil && c.Topology == TopologyHub:
		r.at(seen["topology"], blockKey+".hub", "is missing", "name the peer in the middle, or choose another topology")
	case hub != nil && c.Topology != TopologyHub:
		r.at(hub, blockKey+".hub", "has no meaning in a "+c.Topology, "write `topology: hub`, or remove it")
	}

	r.outside(c.Network.Range, seen["peers"], blockKey+".peers")
	r.outside(c.Network.Range, seen["hub"], blockKey+".hub")

	if d := c.Directory; d.CAFile != "" && !d.VerifyCertificate {
		r.at(seen["directory"], blockKey+".directory.ca_file", "has no effect without verify_certificate", "write `verify_certificate: true`, or remove it")
	}
}

// mapping reads the fields of a mapping and returns the values that are there,
// nil if n is not a mapping.
func (r *reader) mapping(n *yaml.Node, path string, fields []field) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.wrong(n, path, "write keys with values: "+strings.Join(names(fields), ", "))
		return nil
	}
	seen := map[string]*yaml.Node{}
	for key, value := range pairs(n) {
		i := slices.IndexFunc(fields, func(f field) bool { return key.Kind == yaml.ScalarNode && f.key == key.Value })
		switch {
		case i < 0:
			r.unknown(key, path, fields)
			continue
		case seen[key.Value] != nil:
			r.at(key, path+"."+key.Value, "the key is there twice", "remove one of the two")
			continue
		}
		value = placed(value, key)
		seen[key.Value] = value
		if f := fields[i]; f.read != nil {
			f.read(value, path+"."+f.key)
		} else {
			r.mapping(value, path+"."+f.key, f.fields)
		}
	}
	for _, f := range fields {
		if f.need != "" && seen[f.key] == nil {
			r.at(n, path+"."+f.key, "is missing", f.need)
		}
	}
	return seen
}

func (r *reader) unknown(key *yaml.Node, path string, fields []field) {
	switch why, kept := reserved[key.Value]; {
	case key.Kind != yaml.ScalarNode:
		r.at(key, path, "a key is "+describe(key), "write a name")
		return
	case key.Tag == "!!merge":
		r.at(key, path, "merge keys (<<) are not read", "write the keys out")
		return
	case kept && path == blockKey:
		r.at(key, path+"."+key.Value, "is reserved: "+why, "remove it")
		return
	}
	do := "remove it; known here: " + strings.Join(names(fields), ", ")
	if meant := nearest(key.Value, names(fields)); meant != "" {
		do = "did you mean `" + meant + "`?"
	} else {
		for _, f := range fields {
			if slices.Contains(names(f.fields), key.Value) {
				do = "it belongs below `" + f.key + ":`"
			}
		}
	}
	r.at(key, path, "unknown key "+quoteKey(key.Value), do)
}

func (r *reader) wrong(n *yaml.Node, path, do string) { r.at(n, path, "is "+describe(n), do) }

func (r *reader) version(n *yaml.Node, path string) {
	switch {
	case n.ShortTag() != "!!int":
		r.wrong(n, path, "write the number 1")
	case n.Value != "1":
		r.at(n, path, "is "+quote(n.Value)+", and this program knows 1 only", "write 1, or install a newer xivo-firstboot")
	}
}

// check accepts a text and returns it as it is kept, or says what is wrong.
type check func(s string) (string, *fault)

type fault struct{ what, do string }

func (r *reader) string(to *string, ok check) value {
	return value{func(n *yaml.Node, path string) {
		if n.ShortTag() != "!!str" {
			r.wrong(n, path, "write text (in quotes)")
			return
		}
		s, bad := ok(n.Value)
		if bad != nil {
			r.at(n, path, bad.what, bad.do)
			return
		}
		*to = s
	}, func() any { return unless(false, *to) }}
}

// secret differs from string in that its value never gets into a message.
func (r *reader) secret(c *Config) value {
	return value{func(n *yaml.Node, path string) {
		switch {
		case isNull(n):
			r.wrong(n, path, "write one, in quotes")
		case n.ShortTag() != "!!str":
			r.wrong(n, path, "put it in quotes")
		case n.Style == 0 && sexagesimal.MatchString(n.Value):
			r.at(n, path, "is a number to base 60 for cloud-init's YAML", "put it in quotes")
		default:
			bad := checkSecret(n.Value)
			if bad == nil && !r.accepted {
				bad = checkStrength(n.Value)
			}
			if bad != nil {
				r.at(n, path, bad.what, bad.do)
				return
			}
			c.Secret = secret.Secret(n.Value)
		}
	}, func() any {
		if c.Secret == "" && c.SecretFile != "" {
			return nil
		}
		return c.Secret.Reveal()
	}}
}

// list reads texts; what is there twice is kept once.
func (r *reader) list(to *[]string, ok check) value {
	return value{func(n *yaml.Node, path string) {
		if n.Kind != yaml.SequenceNode {
			r.wrong(n, path, "write a list: [a, b], or [] for none")
			return
		}
		var items []string
		for i, item := range n.Content {
			var s string
			if r.string(&s, ok).read(resolve(item), fmt.Sprintf("%s[%d]", path, i)); s != "" && !slices.Contains(items, s) {
				items = append(items, s)
			}
		}
		*to = items
	}, func() any { return *to }}
}

func (r *reader) bool(to *bool) value {
	return value{func(n *yaml.Node, path string) {
		if n.ShortTag() != "!!bool" {
			r.wrong(n, path, "write true or false")
			return
		}
		// An error is impossible: the tag says that it is one.
		_ = n.Decode(to)
	}, func() any { return *to }}
}

func (r *reader) choice(to *string, values ...string) value {
	return r.string(to, oneOf(values))
}

func oneOf(values []string) check {
	return func(s string) (string, *fault) {
		if slices.Contains(values, s) {
			return s, nil
		}
		do := "write one of " + strings.Join(values, ", ")
		if meant := nearest(s, values); meant != "" {
			do = "did you mean `" + meant + "`?"
		}
		return "", &fault{quote(s) + " is not known", do}
	}
}

func (r *reader) advertise(to *Advertise) value {
	const forms = "write auto, an IPv4 address of this machine, or {interface: eth1}"
	return value{func(n *yaml.Node, path string) {
		switch {
		case n.Kind == yaml.MappingNode:
			r.mapping(n, path, []field{{key: "interface", value: r.string(&to.Interface, networkInterface), need: forms}})
		case n.ShortTag() != "!!str":
			r.wrong(n, path, forms)
		case n.Value != "auto":
			r.string(&to.Address, address).read(n, path)
		}
	}, func() any {
		switch {
		case to.Address != "":
			return to.Address
		case to.Interface != "":
			return mapping{{"interface", to.Interface}}
		}
		return "auto"
	}}
}

func (r *reader) contexts(to *[]string) value {
	return value{func(n *yaml.Node, path string) {
		switch {
		case n.ShortTag() == "!!str" && n.Value == "auto":
		case n.Kind == yaml.SequenceNode && len(n.Content) == 0:
			r.at(n, path, "is an empty list: nobody would see the peers' contacts", "write auto, or name contexts")
		case n.Kind != yaml.SequenceNode:
			r.wrong(n, path, "write auto, or a list of contexts: [default]")
		default:
			r.list(to, contextName).read(n, path)
		}
	}, func() any {
		if *to == nil {
			return "auto"
		}
		return *to
	}}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// kinds name a value by its tag, for messages.
var kinds = map[string]string{
	"!!str":       "text",
	"!!int":       "a number",
	"!!float":     "a number",
	"!!bool":      "true or false",
	"!!null":      "empty",
	"!!timestamp": "a date",
	"!!map":       "a mapping",
	"!!seq":       "a list",
}

func describe(n *yaml.Node) string {
	if kind, ok := kinds[n.ShortTag()]; ok {
		return kind
	}
	return "of a type of its own"
}
