package secret_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/xivo-mesh/packer-plugin-xivo/firstboot/secret"
)

func TestRedact(t *testing.T) {
	long := strings.Repeat("x", 299) + "é and more"
	for _, c := range []struct {
		name, said string
		secrets    []secret.Secret
		want       string
	}{
		{"the secret, as often as it is said", "bad p@ss: p@ss", []secret.Secret{"p@ss"}, "bad [redacted]: [redacted]"},
		{"each of its forms", "bad amqp://u:p%40ss@h and p@ss", []secret.Secret{"p@ss", "p%40ss"}, "bad amqp://u:[redacted]@h and [redacted]"},
		{"one line", "bad\n\t definition\n", nil, "bad definition"},
		{"a secret with blanks, however they were laid out", "bad two\n  words", []secret.Secret{"two  words"}, "bad [redacted]"},
		{"no secret hides nothing", "bad definition", []secret.Secret{""}, "bad definition"},
		{"only the beginning of a long one, in whole letters", long, nil, strings.Repeat("x", 299) + " …"},
		{"a secret at the place where it is cut", strings.Repeat("x", 298) + "p@ss", []secret.Secret{"p@ss"}, strings.Repeat("x", 298) + "[r …"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := errors.New(c.said)
			err := secret.Redact(said, c.secrets...)
			if err.Error() != c.want {
				t.Errorf("%q, want %q", err, c.want)
			}
			if errors.Is(err, said) {
				t.Error("it carries the original")
			}
		})
	}
}

func TestRedactURI(t *testing.T) {
	for uri, want := range map[string]string{
		"amqp://u:p@h:1?x=1":     "amqp://h:1",
		"amqps://h":              "amqps://h",
		"u:p@ss@h":               "h",
		"amqp://u:p%40@h/v":      "amqp://h/v",
		"amqps://h?password=p@x": "amqps://x",
	} {
		if got := secret.RedactURI(uri); got != want {
			t.Errorf("%s: %s, want %s", uri, got, want)
		}
	}
}
