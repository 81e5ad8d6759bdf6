// Package secret wraps the mesh secret: the type that never prints itself, and
// the credentials that every node derives from it. Any package may import it.
package secret

import (
	"encoding/base64"
	"encoding/hex"
	"log/slog"

	"github.com/google/uuid"
)

const redacted = "[redacted]"

// Secret is a text that prints, logs and marshals as "[redacted]".
// Convert it with Reveal only where it goes to the thing it opens.
type Secret string

// Reveal returns the text itself.
func (s Secret) Reveal() string { return string(s) }

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// KeyID names the generation without telling it: 6 hex digits.
func (g Generation) KeyID() string { return hex.EncodeToString(g.Derive("key-id", 3)) }

// Account is the name of this generation's accounts and upstream users.
// Letters, digits and dashes only; XiVO's web interface accepts it as a login.
func (g Generation) Account() string { return "xivo-mesh-" + g.KeyID() }

// BrokerPassword opens the federation account of every broker of the mesh.
// URL-safe characters only.
func (g Generation) BrokerPassword() Secret { return g.text("rabbitmq-federation") }

// DirectoryPassword opens the web-service account of every xivo-confd of the
// mesh. URL-safe, and within the 64 characters that XiVO's columns hold.
func (g Generation) DirectoryPassword() Secret { return g.text("confd-web-service") }

// Token is bytes that nobody guesses in the form of a UUID, as Consul has its tokens.
func Token(raw [16]byte) Secret {
	u := uuid.UUID(raw)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return Secret(u.String())
}

// GossipKey is the symmetric key of Consul's gossip: 16 bytes in base64, the
// one length that every Consul from 0.5 on takes.
func (g Generation) GossipKey() Secret {
	return Secret(base64.StdEncoding.EncodeToString(g.Derive("consul-gossip", 16)))
}

func (g Generation) text(label string) Secret {
	return Secret(base64.RawURLEncoding.EncodeToString(g.Derive(label, 30)))
}
