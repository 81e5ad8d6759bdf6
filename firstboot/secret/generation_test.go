package secret

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// All nodes of a mesh come to the same, whichever release they run. These were
// made with Python's hashlib.scrypt and hmac.
func TestWhatFollowsFromASecretStaysTheSame(t *testing.T) {
	g := Stretch(text)
	for what, c := range map[string]struct{ got, want string }{
		"key id":             {g.KeyID(), "33e88e"},
		"account":            {g.Account(), "xivo-mesh-33e88e"},
		"broker password":    {g.BrokerPassword().Reveal(), "Q8mU09ZgpcodAKaLAzrc10Ze_JTyH9k96wJZCVBU"},
		"directory password": {g.DirectoryPassword().Reveal(), "O04pvIsaJ4tjBOLGlNVmtGp_hZF01TlnuhxaAARR"},
		"gossip key":         {g.GossipKey().Reveal(), "GjqppKgwKwi5Dks1GQVXEg=="},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", what, c.got, c.want)
		}
	}
}

func TestAGenerationDoesNotPrintItsRoot(t *testing.T) {
	g := Stretch(text)
	printed := fmt.Sprintf("%v %+v %#v %s %v %+v", g, g, g, g, struct{ g Generation }{g}, struct{ G *Generation }{&g})
	marshalled, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]string{"printed": printed, "marshalled": string(marshalled)} {
		if !strings.Contains(s, "33e88e") {
			t.Errorf("%s: %s", what, s)
		}
		for _, form := range []string{fmt.Sprintf("%x", *g.root), fmt.Sprint(g.root[:4])[1:8], fmt.Sprintf("%#v", g.root[:2])[7:17]} {
			if strings.Contains(s, form) {
				t.Errorf("%s with its root: %s", what, s)
			}
		}
	}
}

func TestOnlyTheRootOfTheSecretIsTaken(t *testing.T) {
	g := Stretch(text)
	whole := string(g.Keep(text))
	if strings.Contains(whole, text) {
		t.Error("the secret itself is kept")
	}
	if got, err := Restore([]byte(whole), text); err != nil || *got.root != *g.root {
		t.Errorf("what was kept is not read back: %v", err)
	}
	var k kept
	if err := json.Unmarshal([]byte(whole), &k); err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*kept)) string {
		other := k
		other.Root, other.Check = append([]byte{}, k.Root...), append([]byte{}, k.Check...)
		change(&other)
		raw, err := json.Marshal(other)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for name, c := range map[string]struct{ content, of string }{
		"of another secret":   {whole, text + "!"},
		"cut off":             {whole[:len(whole)/2], text},
		"empty":               {"", text},
		"zeros":               {strings.Repeat("\x00", 200), text},
		"of a later format":   {changed(func(k *kept) { k.Format = 2 }), text},
		"without a root":      {changed(func(k *kept) { k.Root = nil }), text},
		"a bit is another":    {changed(func(k *kept) { k.Root[3] ^= 1 }), text},
		"another check":       {changed(func(k *kept) { k.Check[3] ^= 1 }), text},
		"another key id":      {changed(func(k *kept) { k.KeyID = "abcdef" }), text},
		"the check is empty":  {changed(func(k *kept) { k.Check = nil }), text},
		"the root is shorter": {changed(func(k *kept) { k.Root = k.Root[:16] }), text},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Restore([]byte(c.content), Secret(c.of))
			if err == nil {
				t.Fatal("it is taken")
			}
			for _, told := range []string{c.of, fmt.Sprintf("%x", *g.root)} {
				if strings.Contains(err.Error(), told) {
					t.Errorf("it is told: %v", err)
				}
			}
		})
	}
}

func TestANewSecretIsLongAndAnotherEachTime(t *testing.T) {
	form := regexp.MustCompile(`^[a-z2-7]{5}(-[a-z2-7]{5}){4}$`)
	seen := map[Secret]bool{}
	for range 100 {
		s := New()
		if !form.MatchString(s.Reveal()) || seen[s] {
			t.Errorf("%s, or it was there before", s.Reveal())
		}
		seen[s] = true
	}
}
