package standin

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// The example of RFC 2617, section 3.5.
const rfcHeader = `Digest username="Mufasa", realm="testrealm@host.com", nonce="dcd98b7102dd2f0e8b11d0f600bfb0c093", uri="/dir/index.html", ` +
	`qop=auth, nc=00000001, cnonce="0a4f113b", response="6629fae49393a05397450978507c4ef1", opaque="5ccc069c403ebaf9f0171e9517f40e41"`

func TestDigestIsThatOfTheRFC(t *testing.T) {
	p := digestParameters(rfcHeader)
	if got := digestResponse(p, "GET", "Circle Of Life"); got != p["response"] {
		t.Errorf("response %s, want %s", got, p["response"])
	}
}

func TestDigestParametersMayHoldCommasAndQuotes(t *testing.T) {
	p := digestParameters(`Digest username="a\"b, c", nc=00000001`)
	if p["username"] != `a"b, c` || p["nc"] != "00000001" {
		t.Errorf("got %q", p)
	}
	if digestParameters("Basic YTpi") != nil || digestParameters("") != nil {
		t.Error("something that is no digest was taken for one")
	}
}

func TestDigestLetsTheRightPasswordIn(t *testing.T) {
	guard := newDigestGuard("realm", func(login string) (string, bool) { return `p@ss:"w%`, login == "xivo, mesh" })
	door := from{"10.0.0.9", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !guard.allows(r) {
			guard.challenge(w)
		}
	})}
	for name, c := range map[string]struct {
		login, password string
		want            int
	}{
		"right":          {"xivo, mesh", `p@ss:"w%`, 200},
		"wrong password": {"xivo, mesh", "other", 401},
		"unknown login":  {"nobody", `p@ss:"w%`, 401},
	} {
		t.Run(name, func(t *testing.T) {
			if got, _ := get(t, &digestTransport{c.login, c.password, door}, "/1.1/users?view=directory&search=a%2Cb"); got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

func TestDigestAnswerIsForOneURIAndOneChallenge(t *testing.T) {
	guard := newDigestGuard("realm", func(string) (string, bool) { return "secret", true })
	header := func(nonce string) string {
		p := map[string]string{"username": "u", "realm": "realm", "nonce": nonce, "uri": "/a"}
		return `Digest username="u", realm="realm", uri="/a", nonce="` + nonce + `", response="` + digestResponse(p, "GET", "secret") + `"`
	}
	ask := func(uri, authorization string) bool {
		r := httptest.NewRequest(http.MethodGet, uri, nil)
		r.Header.Set("Authorization", authorization)
		return guard.allows(r)
	}
	fresh := header(guard.nonce(time.Now()))
	if !ask("/a", fresh) {
		t.Error("the answer to our own challenge was refused (without qop, as RFC 2069)")
	}
	if ask("/b", fresh) {
		t.Error("an answer made for another URI was taken")
	}
	if ask("/a", header(guard.nonce(time.Now().Add(-2*nonceLife)))) {
		t.Error("an old challenge was taken")
	}
	if ask("/a", header(strings.Repeat("0", 10)+"-made-up")) {
		t.Error("a challenge that we never gave was taken")
	}
}
