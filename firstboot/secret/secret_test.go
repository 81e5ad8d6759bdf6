package secret

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

const text = "correct horse battery"

func TestASecretDoesNotPrintItself(t *testing.T) {
	s := Secret(text)
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s)
	raw, err := json.Marshal(struct{ S Secret }{s})
	if err != nil {
		t.Fatal(err)
	}
	printed := fmt.Sprintf("%v %+v %s %q %#v %v", s, struct{ S Secret }{s}, s, s, s, &s) + log.String() + string(raw)
	if strings.Contains(printed, "horse") {
		t.Error(printed)
	}
	if s.Reveal() != text {
		t.Error("Reveal does not give the text")
	}
}

func TestNodesWithOneSecretDeriveTheSame(t *testing.T) {
	a, other := Stretch(text), Stretch(text+"!")
	// Another node: the same, and nothing of this process's memory.
	b, err := Restore(a.Keep(text), text)
	if err != nil {
		t.Fatal(err)
	}
	all := func(g Generation) []string {
		return []string{g.KeyID(), g.Account(), g.BrokerPassword().Reveal(), g.DirectoryPassword().Reveal(), g.GossipKey().Reveal()}
	}
	seen := map[string]bool{}
	for i, v := range all(a) {
		if v != all(b)[i] {
			t.Errorf("value %d differs between two nodes", i)
		}
		if v == all(other)[i] {
			t.Errorf("value %d is the same for another secret", i)
		}
		if seen[v] {
			t.Errorf("value %d is another one's", i)
		}
		seen[v] = true
	}
}

func TestCredentialsHaveTheFormsThatTheirConsumersTake(t *testing.T) {
	g := Stretch(text)
	for name, c := range map[string]struct {
		value   Secret
		pattern string
	}{
		"consul token":       {Token([16]byte(g.Derive("x", 16))), `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`},
		"account":            {Secret(g.Account()), `^xivo-mesh-[0-9a-f]{6}$`},
		"broker password":    {g.BrokerPassword(), `^[A-Za-z0-9_-]{40}$`},
		"directory password": {g.DirectoryPassword(), `^[A-Za-z0-9_-]{4,64}$`},
	} {
		if !regexp.MustCompile(c.pattern).MatchString(c.value.Reveal()) {
			t.Errorf("%s does not match %s", name, c.pattern)
		}
	}
	if key, err := base64.StdEncoding.DecodeString(g.GossipKey().Reveal()); err != nil || len(key) != 16 {
		t.Errorf("gossip key: %d bytes, %v", len(key), err)
	}
}
