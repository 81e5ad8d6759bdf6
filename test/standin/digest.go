package standin

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// nonceLife is how long an answer to a challenge is accepted.
const nonceLife = 5 * time.Minute

// digestGuard is the server's side of HTTP digest authentication (RFC 2617,
// MD5, qop=auth). A nonce carries its own proof, so none is remembered.
type digestGuard struct {
	realm string
	key   []byte
	// password returns the clear password of a login, and whether it has one.
	password func(login string) (string, bool)
}

func newDigestGuard(realm string, password func(string) (string, bool)) *digestGuard {
	key := make([]byte, sha256.Size)
	rand.Read(key)
	return &digestGuard{realm: realm, key: key, password: password}
}

func (g *digestGuard) challenge(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Digest realm="%s", nonce="%s", algorithm=MD5, qop="auth"`, g.realm, g.nonce(time.Now())))
	http.Error(w, "Unauthorized Access", http.StatusUnauthorized)
}

func (g *digestGuard) nonce(now time.Time) string {
	stamp := strconv.FormatInt(now.Unix(), 16)
	mac := hmac.New(sha256.New, g.key)
	io.WriteString(mac, stamp)
	return stamp + "-" + hex.EncodeToString(mac.Sum(nil))
}

func (g *digestGuard) fresh(nonce string) bool {
	stamp, _, _ := strings.Cut(nonce, "-")
	seconds, err := strconv.ParseInt(stamp, 16, 64)
	if err != nil {
		return false
	}
	made := time.Unix(seconds, 0)
	return hmac.Equal([]byte(nonce), []byte(g.nonce(made))) && time.Since(made) < nonceLife
}

func (g *digestGuard) allows(r *http.Request) bool {
	p := digestParameters(r.Header.Get("Authorization"))
	if p == nil || p["realm"] != g.realm || p["uri"] != r.RequestURI || !g.fresh(p["nonce"]) {
		return false
	}
	password, ok := g.password(p["username"])
	if !ok {
		return false
	}
	want := digestResponse(p, r.Method, password)
	return subtle.ConstantTimeCompare([]byte(want), []byte(p["response"])) == 1
}

// digestTransport is the client's side: it sends the request again with the
// credentials when it is challenged. Requests must have no body.
type digestTransport struct {
	login, password string
	next            http.RoundTripper
}

func (t *digestTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	asked := digestParameters(resp.Header.Get("WWW-Authenticate"))
	if asked == nil {
		return resp, nil
	}
	io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	resp.Body.Close()

	cnonce := make([]byte, 8)
	rand.Read(cnonce)
	p := map[string]string{
		"username": t.login,
		"realm":    asked["realm"],
		"nonce":    asked["nonce"],
		"uri":      r.URL.RequestURI(),
	}
	if asked["qop"] != "" {
		p["qop"], p["nc"], p["cnonce"] = "auth", "00000001", hex.EncodeToString(cnonce)
	}
	p["response"] = digestResponse(p, r.Method, t.password)

	var header bytes.Buffer
	header.WriteString("Digest ")
	for i, name := range []string{"username", "realm", "nonce", "uri", "response", "cnonce"} {
		if p[name] == "" {
			continue
		}
		if i > 0 {
			header.WriteString(", ")
		}
		fmt.Fprintf(&header, `%s="%s"`, name, quoter.Replace(p[name]))
	}
	if p["qop"] != "" {
		fmt.Fprintf(&header, ", qop=%s, nc=%s", p["qop"], p["nc"])
	}
	if opaque := asked["opaque"]; opaque != "" {
		fmt.Fprintf(&header, `, opaque="%s"`, quoter.Replace(opaque))
	}
	again := r.Clone(r.Context())
	again.Header.Set("Authorization", header.String())
	return t.next.RoundTrip(again)
}

var quoter = strings.NewReplacer(`\`, `\\`, `"`, `\"`)

func digestResponse(p map[string]string, method, password string) string {
	a1 := md5Hex(p["username"] + ":" + p["realm"] + ":" + password)
	a2 := md5Hex(method + ":" + p["uri"])
	if p["qop"] == "" {
		return md5Hex(a1 + ":" + p["nonce"] + ":" + a2)
	}
	return md5Hex(strings.Join([]string{a1, p["nonce"], p["nc"], p["cnonce"], p["qop"], a2}, ":"))
}

func md5Hex(s string) string {
	sum := md5.Sum([]byte(s))
	return hex.EncodeToString(sum[:])
}

// digestParameters reads the parameters of a Digest header; nil when it is not
// one. Values may be quoted, and a quoted value may hold commas.
func digestParameters(header string) map[string]string {
	scheme, rest, ok := strings.Cut(header, " ")
	if !ok || !strings.EqualFold(scheme, "Digest") {
		return nil
	}
	p := map[string]string{}
	for {
		rest = strings.TrimLeft(rest, ", \t")
		name, after, ok := strings.Cut(rest, "=")
		if !ok {
			return p
		}
		var value strings.Builder
		i := 0
		if strings.HasPrefix(after, `"`) {
			for i = 1; i < len(after) && after[i] != '"'; i++ {
				if after[i] == '\\' && i+1 < len(after) {
					i++
				}
				value.WriteByte(after[i])
			}
			i = min(i+1, len(after))
		} else {
			for ; i < len(after) && after[i] != ','; i++ {
				value.WriteByte(after[i])
			}
		}
		p[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value.String())
		rest = after[i:]
	}
}
