package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
)

// TestValidate is what a user sees of a document: exit code 0, or 2 with one
// line per problem that names the place.
func TestValidate(t *testing.T) {
	const word = "hunter2-sings-at-noon"
	block := func(lines string) string {
		return "#cloud-config\nxivo:\n  version: 1\n  peers: []\n  secret: " + word + "\n  " + lines + "\n"
	}
	peers := func(list string) string {
		return "xivo: {version: 1, secret: " + word + ", peers: [" + list + "]}\n"
	}
	for _, c := range []struct {
		name, document string
		code           int
		says           string
	}{
		{"the first node", peers(""), exitDone, ""},
		{"one peer", peers("192.168.1.124"), exitDone, ""},
		{"a peer twice", peers("xivo1.example.com, XIVO1.example.com."), exitDone, ""},
		{"lines that end as in Windows", strings.ReplaceAll(block("identity: auto"), "\n", "\r\n"), exitDone, ""},
		{"keys for others beside it", block("identity: auto") + "hostname: xivo\nruncmd: [ls]\n", exitDone, ""},
		{"an anchor", block("firewall: {allow: &net [10.0.0.0/8]}"), exitDone, ""},

		{"an unknown key", block("peer: [a]"), exitUsage, `6:3: xivo: unknown key "peer"`},
		{"a nested unknown key", block("consul: {encrypted: true}"), exitUsage, `6:12: xivo.consul: unknown key "encrypted"`},
		{"a wrong type", block("consul: {encrypt: 1}"), exitUsage, "6:21: xivo.consul.encrypt: is a number"},
		{"a key twice", block("version: 1"), exitUsage, "6:3: xivo.version: the key is there twice"},
		{"no version", "xivo: {peers: [], secret: " + word + "}", exitUsage, "1:7: xivo.version: is missing"},
		{"no secret", "xivo: {version: 1, peers: []}", exitUsage, "1:7: xivo.secret: is missing"},
		{"both secrets", block("secret_file: /etc/secret"), exitUsage, "6:16: xivo.secret_file: there is a secret, too"},
		{"a short secret", "xivo: {version: 1, peers: [], secret: hunter2}", exitUsage, "1:39: xivo.secret: has 7 characters"},
		{"version 2", "xivo: {version: 2}", exitUsage, `1:17: xivo.version: is "2"`},
		{"a reserved key", block("hooks: []"), exitUsage, "6:3: xivo.hooks: is reserved"},
		{"a key of a later release", block("previous_secret: " + word), exitUsage, "6:3: xivo.previous_secret: is reserved"},
		{"an empty file", "", exitUsage, "the file is empty"},
		{"no document", "#cloud-config\nhostname: xivo\n", exitUsage, "it has no key `xivo`"},
		{"an empty block", "#cloud-config\nxivo:\n", exitUsage, "2:1: xivo: the block is empty"},
		{"a byte order mark", "\ufeff" + block("identity: auto"), exitUsage, "1:1: the file starts with a byte order mark"},
		{"a tab", "xivo:\n\tversion: 1\n", exitUsage, "2:1: a tab"},
		{"1 MB of junk", strings.Repeat("junk ", 200_000), exitUsage, "1:1: the file has "},
		{"a YAML bomb", "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n" + peers("a"), exitUsage, "the aliases stand for more than"},
		{"IPv6", peers(`"2001:db8::1"`), exitUsage, "xivo.peers[0]: \"2001:db8::1\" is an IPv6 address"},
		{"a URL", peers(`"https://root:hunter2@10.0.0.1/"`), exitUsage, "xivo.peers[0]: is a URL"},
		{"a hub that is not named", block("topology: hub"), exitUsage, "6:13: xivo.hub: is missing"},
		{"a shell command", peers(`"$(reboot)"`), exitUsage, `xivo.peers[0]: "$(reboot)" is not a host name`},
		{"quotes", peers(`'"; DROP TABLE infos; --'`), exitUsage, "is not a host name"},
		{"a line break", peers(`"a\nb"`), exitUsage, `xivo.peers[0]: "a\nb" is not a host name`},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, said bytes.Buffer
			code := run(t.Context(), []string{"validate", "-"}, stdio{strings.NewReader(c.document), &out, &said})
			if code != c.code || !strings.Contains(said.String(), c.says) {
				t.Fatalf("exit code %d, want %d with %q: %s%s", code, c.code, c.says, out.String(), said.String())
			}
			if c.code == exitDone {
				if out.String() != "standard input is valid\n" || said.Len() > 0 {
					t.Errorf("it says %q and %q", out.String(), said.String())
				}
				return
			}
			if lines := strings.Count(said.String(), "\n"); lines != 1 || out.Len() > 0 {
				t.Errorf("%d lines for one problem: %s%s", lines, out.String(), said.String())
			}
			if !regexp.MustCompile(`^xivo-firstboot: standard input:`).MatchString(said.String()) {
				t.Errorf("the file is not named: %s", said.String())
			}
			if strings.Contains(said.String(), "hunter2") {
				t.Errorf("the secret is told: %s", said.String())
			}
		})
	}
}
