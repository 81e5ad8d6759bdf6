package rabbitmq

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"hash"
	"strings"

	rabbithole "github.com/michaelklishin/rabbit-hole/v2"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/engine"
	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

// accountPrefix is how the accounts of the mesh begin, of every generation of
// its secret.
const accountPrefix = "xivo-mesh-"

// leastRights are all that a downstream needs on its upstream: its own queue
// and internal exchange, and reading from the bus. Measured on 3.10.8.
var leastRights = rabbithole.Permissions{
	Configure: "^" + downstreamQueue,
	Write:     "^" + downstreamQueue,
	Read:      "^(" + exchange + "$|" + downstreamQueue + ")",
}

// federationUser is the resource of Client.FederationUser.
type federationUser struct {
	client   *Client
	name     string
	password secret.Secret
}

// FederationUser is the account that peers log in with. It has no tag, so it
// can neither use the management API nor change anything but its own queues.
func (c *Client) FederationUser(account string, password secret.Secret) engine.Resource {
	return federationUser{c, account, password}
}

func (u federationUser) Diff(ctx context.Context) ([]string, error) {
	found, err := u.client.api(ctx).GetUser(u.name)
	if notFound(err) {
		return []string{fmt.Sprintf("user %s does not exist", u.name)}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("rabbitmq: read user %s: %w", u.name, err)
	}
	var diff []string
	if !opens(found, u.password) {
		diff = append(diff, fmt.Sprintf("user %s has another password", u.name))
	}
	if strings.Join(found.Tags, "") != "" {
		diff = append(diff, fmt.Sprintf("user %s has tags, wanted none", u.name))
	}
	rights, err := u.rights(ctx)
	if err != nil {
		return nil, err
	}
	if rights != leastRights {
		diff = append(diff, fmt.Sprintf("user %s has other rights than its own queues and reading the bus", u.name))
	}
	return diff, nil
}

// rights are those that the user has on the bus; none is the zero value.
func (u federationUser) rights(ctx context.Context) (rabbithole.Permissions, error) {
	all, err := u.client.api(ctx).ListPermissionsOf(u.name)
	if err != nil {
		return rabbithole.Permissions{}, fmt.Errorf("rabbitmq: read the rights of user %s: %w", u.name, err)
	}
	for _, r := range all {
		if r.Vhost == vhost {
			return rabbithole.Permissions{Configure: r.Configure, Write: r.Write, Read: r.Read}, nil
		}
	}
	return rabbithole.Permissions{}, nil
}

func (u federationUser) Apply(ctx context.Context) error {
	api := u.client.api(ctx)
	settings := rabbithole.UserSettings{Name: u.name, Password: u.password.Reveal()}
	if err := sent(api.PutUser(u.name, settings)); err != nil {
		return fmt.Errorf("rabbitmq: set user %s: %w", u.name, withoutPassword(err, u.password))
	}
	if err := sent(api.UpdatePermissionsIn(vhost, u.name, leastRights)); err != nil {
		return fmt.Errorf("rabbitmq: set the rights of user %s: %w", u.name, err)
	}
	return nil
}

// opens says whether a password is the user's: RabbitMQ tells the hash, four
// bytes of salt before it. Brokers before 3.6 hash with MD5 and do not say so.
func opens(user *rabbithole.UserInfo, password secret.Secret) bool {
	var h hash.Hash
	switch user.HashingAlgorithm {
	case rabbithole.HashingAlgorithmSHA256:
		h = sha256.New()
	case rabbithole.HashingAlgorithmSHA512:
		h = sha512.New()
	case rabbithole.HashingAlgorithmMD5, "":
		h = md5.New()
	default:
		return false
	}
	const salt = 4
	stored, err := base64.StdEncoding.DecodeString(user.PasswordHash)
	if err != nil || len(stored) != salt+h.Size() {
		return false
	}
	h.Write(stored[:salt])
	h.Write([]byte(password.Reveal()))
	return subtle.ConstantTimeCompare(h.Sum(nil), stored[salt:]) == 1
}

// withoutPassword is what RabbitMQ said to a definition that it refused: it
// repeats the definition, where the password may be part of a uri.
func withoutPassword(err error, password secret.Secret) error {
	return secret.Redact(err, password, secret.Secret(escape(password.Reveal())))
}
